"""Evaluation: scores, going on, ranks, verify, segment and demo (D5, D12)."""

import json
from pathlib import Path

import numpy as np
import pytest
from dit_sam_tiny import files_below, run
from PIL import Image
from pycocotools import mask as coco

from dit_sam.data.sets import ReferringSet
from dit_sam.evaluation import run as module
from dit_sam.evaluation.run import run_eval
from dit_sam.evaluation.settings import EvalSettings
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor
from tenfold.runs import RunRecord, read_jsonl


@pytest.fixture()
def chosen(tiny_folder, mini_data):
    return EvalSettings(model=str(tiny_folder), data=str(mini_data), set="refcoco", part="val", batch=3)


def test_scores_are_those_of_the_written_masks(chosen, tmp_path):
    """Fails if a mask, its pixels or a score did not belong to its sentence; judged by pycocotools and plain
    counting.
    """
    found = run_eval(chosen, tmp_path / "eval")
    rows = read_jsonl(tmp_path / "eval" / "predictions.jsonl")
    samples = ReferringSet(Path(chosen.data), "refcoco").samples("val")
    assert [row["id"] for row in rows] == [sample.id for sample in samples]
    predictor = DitPredictor(DITSam.from_pretrained(chosen.model), protocol="official")
    ious = []
    for row, sample in zip(rows, samples, strict=True):
        image = sample.image()
        predictor.set_image(image)
        mask = predictor.predict(text=sample.sentences[0]).masks[0]
        assert (coco.decode({**row["mask"], "counts": row["mask"]["counts"].encode()}) == mask).all()
        truth = sample.mask(image) > 0
        ious.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    assert found.metrics["scores"]["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-6)
    assert sum(one["sentences"] for one in found.metrics["kinds"].values()) == found.metrics["sentences"] == len(rows)


def test_a_killed_evaluation_goes_on(chosen, tmp_path, monkeypatch):
    """Fails if what was answered were answered again, or the outcome differed in a byte."""
    run_eval(chosen, tmp_path / "whole")
    real, calls = module._answer, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run_eval(chosen, tmp_path / "again")
    run_eval(chosen, tmp_path / "again")
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert run_eval(chosen, tmp_path / "again").metrics == RunRecord.load(tmp_path / "whole").metrics


def test_eval_prints_a_table_and_verify_holds(tiny_folder, mini_data, tmp_path):
    """Fails if a measure or the count of sentences were not printed, or the same run gave other numbers."""
    output = tmp_path / "eval"
    code, said, _ = run("eval", tiny_folder, "--data", mini_data, "--part", "test", "--limit", 4, "--output", output)
    assert code == 0 and "mIoU" in said and "oIoU" in said and "P@0.5" in said and "4 sentences" in said
    code, said, _ = run("verify", output)
    assert code == 0 and "It holds." in said
    record = json.loads((output / "run.json").read_text())
    record["metrics"]["scores"]["mIoU"] += 1.0
    (output / "run.json").write_text(json.dumps(record))
    assert run("verify", output)[0] == 1
    code, said, _ = run("cite", output)
    assert (code == 0 and "huang2024deep" in said) or "huang" in said.lower()


def test_segment_writes_masks_of_the_pictures_size(tiny_folder, tmp_path):
    """Fails if a sentence had no mask, a mask another size, or the overlay were missing."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    output = tmp_path / "out"
    code, said, _ = run(
        "segment", tmp_path / "a.png", "the square", "the red object", "--model", tiny_folder, "--output", output
    )
    assert code == 0 and "score" in said
    assert files_below(output) == ["mask-1-the-square.png", "mask-2-the-red-object.png", "overlay.png", "run.json"]
    mask = np.array(Image.open(output / "mask-1-the-square.png"))
    assert mask.shape == (40, 90) and set(np.unique(mask)) <= {0, 255}
    assert run("verify", output)[0] == 0
