"""What tenfold itself reads: damaged files are refused in one line, or are right."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tenfold.cli import bibtex
from tenfold.data import write
from tenfold.data.benchmarks import BENCHMARKS
from tenfold.data.formats import read_calibration, read_llava_instruct
from tenfold.data.pictures import open_picture, read_stored
from tenfold.ledger import load_ledger
from tenfold.runs import RunRecord, last_complete_checkpoint, read_json, read_jsonl, read_yaml, run, write_checkpoint
from tenfold.runs.files import read_bytes
from tenfold.runs.parse import require_plain
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.unpickling import unpickle
from tenfold.testing.fuzz import FEW, INPUTS, Reading, fuzz
from tenfold.weights import WeightFiles, read_weights

PACKAGES = Path(__file__).parents[2] / "packages"


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    return [*_records(folder), *_weights(folder), *_pictures(folder), *_benchmarks(folder)]


def _records(folder: Path) -> list[Reading]:
    made = folder / "record"
    with run("tenfold", "eval", config={"model": "mini", "limit": 3}, seed=0, output=made) as current:
        current.log(1, loss=0.5)
        current.metrics.update({"scores": {"accuracy": 0.5}, "ranks": 1})
    citation = bibtex.load_citation(PACKAGES / "fitprune" / "CITATION.cff")
    log = folder / "predictions"
    PredictionLog(log, {"model": "mini"}).extend([(1, "yes"), ("b", ["no", 0.5])])
    checkpoints = folder / "checkpoints"
    for step in (1, 2):
        write_checkpoint(checkpoints, step, lambda place: torch.save({"a": torch.ones(3)}, place / "state.pt"))
    texts = folder / "texts"
    texts.mkdir()
    (texts / "a.json").write_text(json.dumps({"a": [1, 0.5, {"b": "c"}], "d": None, "e": True}))
    (texts / "a.yaml").write_text("a: [1, 0.5]\nb: {c: text, d: 2024-01-01}\ne: true\n")
    ledger = folder / "ledger"
    ledger.mkdir()
    (ledger / "claims.yaml").write_bytes((PACKAGES / "fitprune" / "claims.yaml").read_bytes())
    (ledger / "CITATION.cff").write_bytes((PACKAGES / "fitprune" / "CITATION.cff").read_bytes())
    (folder / "pickle").mkdir()
    refs = [{"ref_id": 1, "sentences": [{"sent": "left", "tokens": ["left"]}], "split": "train", "area": 0.5}]
    (folder / "pickle" / "refs.p").write_bytes(pickle.dumps(refs, protocol=2))
    return [
        Reading("record", made, lambda f: bibtex.run_bibtex(citation, RunRecord.load(f)), ("run.json",)),
        Reading("metrics", made, lambda f: read_jsonl(f / "metrics.jsonl"), ("metrics.jsonl",)),
        Reading("predictions", log, lambda f: PredictionLog(f, {"model": "mini"}).merged([1, "b"])),
        Reading("checkpoints", checkpoints, lambda f: str(last_complete_checkpoint(f)), ("**/COMPLETE", "**/*.pt")),
        Reading("json", texts, lambda f: read_json(f / "a.json"), ("a.json",)),
        Reading("yaml", texts, lambda f: str(read_yaml(f / "a.yaml")), ("a.yaml",)),
        Reading("ledger", ledger, lambda f: load_ledger(f / "claims.yaml"), ("claims.yaml",)),
        Reading("citation", ledger, lambda f: _cited(f / "CITATION.cff"), ("CITATION.cff",)),
        Reading("pickle", folder / "pickle", lambda f: _unpickled(f / "refs.p")),
    ]


def _cited(path: Path) -> str:
    return bibtex.paper_bibtex(bibtex.load_citation(path), "fitprune")


def _unpickled(path: Path) -> str:
    value = unpickle(read_bytes(path), path, latin1=True)
    require_plain(value, path)
    return str(value)


def _weights(folder: Path) -> list[Reading]:
    tensors = {"a.weight": torch.randn(4, 3), "b": torch.arange(5), "c": torch.randn(2).to(torch.bfloat16)}
    for name in ("safetensors", "bin", "pth"):
        (folder / name).mkdir()
    save_file(tensors, folder / "safetensors" / "model.safetensors", metadata={"format": "pt"})
    torch.save(tensors, folder / "bin" / "pytorch_model.bin")
    torch.save({"state": tensors, "step": 3}, folder / "pth" / "old.pth", _use_new_zipfile_serialization=False)
    return [
        Reading("safetensors", folder / "safetensors", _all_weights),
        Reading("bin", folder / "bin", _all_weights),
        Reading("pth", folder / "pth", lambda f: str(read_weights(f / "old.pth"))),
    ]


def _all_weights(folder: Path) -> str:
    with WeightFiles(folder) as files:
        return str({name: tensor.read().float().sum() for name, tensor in files.tensors.items()}.keys())


def _pictures(folder: Path) -> list[Reading]:
    made = folder / "pictures"
    made.mkdir()
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    for name in ("a.png", "b.jpg", "c.webp", "d.tiff", "e.gif", "f.bmp"):
        image.save(made / name)
    return [
        Reading("pictures", made, lambda f: [open_picture(one).size for one in sorted(f.iterdir())]),
        Reading("raw pictures", made, lambda f: [open_picture(one, raw=True).size for one in sorted(f.iterdir())]),
        Reading("masks", made, lambda f: [read_stored(one).shape for one in sorted(f.iterdir())]),
    ]


def _benchmarks(folder: Path) -> list[Reading]:
    found = []
    for format, writer in write.WRITERS.items():
        if format.value in BENCHMARKS:
            made = folder / format.value
            made.mkdir()
            writer(made, 0, 8, 32)
            found.append(Reading(format.value, made, partial(_asked, format.value)))
    calibration, instruct = folder / "calibration", folder / "instruct"
    for made, writer in ((calibration, write.write_calibration), (instruct, write.write_llava_instruct)):
        made.mkdir()
        writer(made, 0, 4, 32)
    return [
        *found,
        Reading("calibration", calibration, lambda f: _opened(read_calibration(f / "calibration.jsonl", f / "images"))),
        Reading("instruct", instruct, lambda f: _opened(read_llava_instruct(f / "llava_instruct.json", f / "images"))),
    ]


def _asked(name: str, folder: Path) -> dict[str, float]:
    one = BENCHMARKS[name]
    questions = one.read(folder)
    for question in questions:
        question.image()
    answers = {question.id: "yes" for question in questions}
    one.write_submission(questions, answers, folder.parent / "out")
    return one.score(questions, answers) or {} if one.main else {}


def _opened(samples: list[Any]) -> int:
    return sum(sample.picture is not None and sample.picture.open().width for sample in samples)


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=4 * FEW)
    assert found == [], "\n".join(map(str, found))
