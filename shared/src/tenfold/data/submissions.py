"""What the benchmarks' servers and official scripts read: one writer each, of samples and the model's texts.

Every file appears whole or not at all. Answers for VQAv2's and VizWiz's servers are normalised as LLaVA does it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tenfold.data.formats import (
    CalibrationSample,
    CaptionSample,
    GQASample,
    MMBenchSample,
    MMESample,
    MMVetSample,
    OKVQASample,
    SeedFrameSample,
    SeedSample,
    TextVQASample,
    VizWizSample,
    VQAv2Sample,
    write_caption_results,
)
from tenfold.data.formats.mmbench import LETTERS
from tenfold.metrics import choice_letter, normalise_evalai
from tenfold.runs import atomic_write_bytes, atomic_write_json, atomic_write_text

logger = logging.getLogger(__name__)


def submit_textvqa(samples: Sequence[TextVQASample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"question_id", "answer"}, ...]"""
    records = [
        {"question_id": sample.question_id, "answer": text.strip()} for sample, text in zip(samples, texts, strict=True)
    ]
    return [_json(folder / "textvqa_submission.json", records)]


def submit_vqav2(samples: Sequence[VQAv2Sample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"question_id", "answer"}, ...] of the questions asked."""
    records = [
        {"question_id": sample.question_id, "answer": normalise_evalai(text)}
        for sample, text in zip(samples, texts, strict=True)
    ]
    return [_json(folder / "vqav2_submission.json", records)]


def submit_gqa(samples: Sequence[GQASample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"questionId", "prediction"}, ...]: what the official `eval.py` takes as `--predictions`."""
    records = [
        {"questionId": sample.id, "prediction": text.strip().rstrip(".").lower()}
        for sample, text in zip(samples, texts, strict=True)
    ]
    return [_json(folder / "gqa_predictions.json", records)]


def submit_vizwiz(samples: Sequence[VizWizSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"image", "answer"}, ...]"""
    records = [
        {"image": sample.image_name, "answer": normalise_evalai(text)}
        for sample, text in zip(samples, texts, strict=True)
    ]
    return [_json(folder / "vizwiz_submission.json", records)]


def submit_mme(samples: Sequence[MMESample], texts: Sequence[str], folder: Path) -> list[Path]:
    """mme_results/<subtask>.txt: image, question, Yes or No, the model's text, tabs between; an image's two lines
    follow each other. The official `calculation.py` takes the folder as `--results_dir` (it wants all fourteen).
    """
    lines: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for sample, text in zip(samples, texts, strict=True):
        cells = (sample.image_name, sample.question, sample.label.capitalize(), " ".join(text.split()))
        lines[sample.subtask].append((sample.image_name, sample.number, "\t".join(cells) + "\n"))
    paths = []
    for subtask, found in lines.items():
        paths.append(folder / "mme_results" / f"{subtask}.txt")
        atomic_write_text(paths[-1], "".join(line for _, _, line in sorted(found)))
    return paths


def submit_mmbench(
    samples: Sequence[MMBenchSample], texts: Sequence[str], folder: Path, name: str = "mmbench"
) -> list[Path]:
    """A table with columns index, question, A to D, prediction, answer and split: tab-separated, and, where openpyxl
    can be imported, as the .xlsx that the server takes.
    """
    header = ("index", "question", *LETTERS, "prediction", "answer", "split")
    rows = [
        (
            sample.index, sample.question, *sample.options, *[""] * (len(LETTERS) - len(sample.options)), text,
            sample.answer or "", sample.split,
        )
        for sample, text in zip(samples, texts, strict=True)
    ]  # fmt: skip
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    paths = [folder / f"{name}_submission.tsv"]
    atomic_write_text(paths[0], buffer.getvalue())
    try:
        from openpyxl import Workbook
    except ImportError:
        logger.warning("%s: the server takes .xlsx; install openpyxl to have it written too", paths[0])
        return paths
    book = Workbook()
    for row in [header, *rows]:
        # A text that begins with "=" would become a formula.
        book.active.append([f"'{cell}" if isinstance(cell, str) and cell.startswith("=") else cell for cell in row])
    content = io.BytesIO()
    book.save(content)
    paths.append(folder / f"{name}_submission.xlsx")
    atomic_write_bytes(paths[1], content.getvalue())
    return paths


def submit_mmbench_cn(samples: Sequence[MMBenchSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """As `submit_mmbench`, under its own name."""
    return submit_mmbench(samples, texts, folder, "mmbench_cn")


def submit_seed(samples: Sequence[SeedSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """{"question_id", "prediction"} a line; the prediction is the letter read, or the text where none can be read."""
    lines = [
        {"question_id": sample.question_id, "prediction": choice_letter(text, sample.choices) or text}
        for sample, text in zip(samples, texts, strict=True)
    ]
    path = folder / "seed_submission.jsonl"
    atomic_write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return [path]


def submit_mmvet(samples: Sequence[MMVetSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """{"v1_0": "the model's text", ...}: what the official GPT-4 judge reads."""
    answers = {sample.id: text for sample, text in zip(samples, texts, strict=True)}
    return [_json(folder / "mmvet_submission.json", answers)]


def submit_okvqa(samples: Sequence[OKVQASample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"question_id", "answer"}, ...]: what the official VQA tool reads."""
    records = [
        {"question_id": sample.question_id, "answer": text.strip()} for sample, text in zip(samples, texts, strict=True)
    ]
    return [_json(folder / "okvqa_results.json", records)]


def submit_captions(samples: Sequence[CaptionSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"image_id", "caption"}, ...]: what COCO's tools read."""
    path = folder / "coco_caption_results.json"
    write_caption_results(path, {sample.image_id: text for sample, text in zip(samples, texts, strict=True)})
    return [path]


def submit_seed_frames(samples: Sequence[SeedFrameSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """{"question_id", "prediction"} a line; the prediction is the letter read, or the text where none can be read."""
    return _lines(
        folder / "seed_submission.jsonl",
        [
            {"question_id": sample.question_id, "prediction": choice_letter(text, sample.choices) or text}
            for sample, text in zip(samples, texts, strict=True)
        ],
    )


def submit_llava_bench(samples: Sequence[CalibrationSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """{"question_id", "prompt", "text"} a line: what LLaVA's script hands to the judge."""
    return _lines(
        folder / "llava_bench_answers.jsonl",
        [
            {"question_id": sample.question_id, "prompt": sample.text, "text": text, "metadata": {}}
            for sample, text in zip(samples, texts, strict=True)
        ],
    )


def _lines(path: Path, records: Sequence[dict[str, object]]) -> list[Path]:
    atomic_write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return [path]


def _json(path: Path, values: object) -> Path:
    atomic_write_json(path, values)
    return path
