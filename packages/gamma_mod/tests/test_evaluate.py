"""D5: official formats, resumption, ranks, batches; the realised skip and the scores against independent counts."""

import hashlib
import json
import os
import signal

import pytest
import torch
from gamma_mod_training import in_ranks, killed

from gamma_mod import costs
from gamma_mod.costs import DecoderShape
from gamma_mod.evaluation import run as evaluation
from gamma_mod.evaluation.answers import answer, open_host
from gamma_mod.evaluation.run import run_eval, skipped
from gamma_mod.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.data import mini_host, mini_sets, write

SETTINGS = EvalSettings(benchmark="gqa", layers="arank_mod", skip=0.3, limit=24, batch=4, device="cpu")
SILENT = {"progress": lambda items, _title: items}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "run"
    run_eval(SETTINGS, 0, folder, **SILENT)
    return folder


def files(folder):
    names = ("predictions.jsonl", "metrics.json", "gqa_predictions.json")
    return {name: hashlib.sha256(next(folder.rglob(name)).read_bytes()).hexdigest() for name in names}


def test_scores_are_counted_by_hand(whole):
    """Exact match of lower-cased answers without a final stop. Fails if another split, prompt or normalisation is
    scored."""
    rows = [json.loads(line) for line in next(whole.rglob("predictions.jsonl")).read_text().splitlines()]
    metrics = json.loads(next(whole.rglob("metrics.json")).read_text())
    gold = [sample.answer for sample in mini_sets.gqa(1_000_000, 20, 96)][:24]
    right = sum(row["text"].lower().rstrip(".") == answer for row, answer in zip(rows, gold, strict=True))
    assert metrics["scores"]["accuracy"] == pytest.approx(right / 24) and metrics["questions"] == 24


def test_the_skip_is_what_the_rows_say(whole):
    """Fails if padding counts, or if ratio and skip are mixed up."""
    rows = [json.loads(line) for line in next(whole.rglob("predictions.jsonl")).read_text().splitlines()]
    skip = json.loads(next(whole.rglob("metrics.json")).read_text())["skip"]
    prompts, kept = sum(row["tokens"] for row in rows), sum(sum(row["kept"]) for row in rows)
    layers = len(skip["per_layer"])
    assert skip["prefill"] == pytest.approx(1 - kept / (layers * prompts)) and abs(skip["prefill"] - 0.3) < 0.05
    steps = sum(row["new_tokens"] - 1 for row in rows)
    decoded = sum(sum(row["decoded"]) for row in rows)
    assert skip["total"] == pytest.approx(1 - (kept + decoded) / (layers * (prompts + steps)))


def test_killed_it_goes_on_and_ends_with_the_same_files(whole, tmp_path):
    """SIGKILL after three of six batches. Fails if answers are asked again, lost, or scored from a torn line."""

    def dies():
        calls = []

        def counted(*args, **kwargs):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer(*args, **kwargs)

        evaluation.answer = counted
        run_eval(SETTINGS, 0, tmp_path / "run", **SILENT)

    assert killed(dies)
    said = []
    run_eval(SETTINGS, 0, tmp_path / "run", say=said.append, **SILENT)
    assert "going on after 12 of 24" in said[0]
    assert files(tmp_path / "run") == files(whole)


def test_two_ranks_share_the_questions(whole, tmp_path):
    """Fails if a rank answers what another does, or if batches change answers."""
    in_ranks(lambda: run_eval(SETTINGS, 0, tmp_path / "run", **SILENT))
    assert files(tmp_path / "run") == files(whole)


def test_a_batch_is_its_rows():
    """Text, kept and decoded tokens of every row alone and in a batch of mixed lengths, also behind its end."""
    host = open_host(SETTINGS.model_copy(update={"threshold": 0.48, "skip": None}), "cpu", 0)
    scenes = list(mini_sets.calibration(3, 6, 96))
    images, questions = [one.picture.open() for one in scenes], [one.text for one in scenes]
    questions[1] = "What shape is it?"
    together = answer(host, images, questions, max_new_tokens=6)
    alone = [answer(host, [i], [q], max_new_tokens=6)[0] for i, q in zip(images, questions, strict=True)]
    assert together == alone and len({one.tokens for one in together}) > 1


def test_what_prompts_cost_follows_from_what_was_kept():
    shape = DecoderShape(layers=3, hidden=8, intermediate=16, heads=2, kv_heads=2, head_dim=4)
    answers = [{"tokens": 10, "new_tokens": 3, "kept": (4,), "decoded": (1,)}]
    found = skipped(answers, (1,), shape)
    assert found["skip"] == {"prefill": 0.6, "decode": 0.5, "total": pytest.approx(7 / 12), "per_layer": {"1": 0.6}}
    assert found["prompt_gflops"] * 1e9 == pytest.approx(costs.prefill_flops([10, 4, 10], shape))
    dense = skipped([{"tokens": 10, "new_tokens": 1, "kept": (), "decoded": ()}], (), shape)
    assert dense["skip"]["prefill"] is None and dense["prompt_gflops"] == dense["prompt_gflops_dense"]


def test_a_named_folder_in_official_format_is_read(tmp_path):
    write.WRITERS[write.Format.pope](tmp_path / "pope", 0, 2, 96)
    settings = EvalSettings(benchmark="pope", data=str(tmp_path / "pope"), device="cpu", limit=6)
    (found,) = run_eval(settings, 0, tmp_path / "run", **SILENT)
    assert "f1" in found.metrics["scores"] and found.limited
    (again,) = run_eval(
        settings.model_copy(update={"benchmark": "all", "data": str(tmp_path)}), 0, tmp_path / "all", **SILENT
    )
    assert again.metrics["scores"] == found.metrics["scores"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "imagenet"}, "unknown benchmark"),
        ({"data": "/nowhere"}, "no such folder"),
        ({"split": "val", "benchmark": "all"}, "a split for all benchmarks"),
        ({"layers": None}, "thresholds for a dense model"),
        ({"layers": "middle"}, "unknown placement"),
        ({"model": "/nowhere"}, "no data"),
        ({"imports": ("no_such_module",)}, "no module no_such_module"),
        ({"device": "cuda"}, "CUDA"),
    ],
)
def test_what_an_evaluation_refuses(changes, message, tmp_path):
    """Each in one line, before anything is answered."""
    with pytest.raises(UserError, match=message):
        run_eval(SETTINGS.model_copy(update=changes), 0, tmp_path / "run", **SILENT)


def test_a_finished_run_is_not_written_over(whole):
    with pytest.raises(UserError, match=r"finished run|already"):
        run_eval(SETTINGS, 0, whole, **SILENT)


def test_the_mini_host_reads_the_mini_world():
    """The shipped host answers what it was taught: a floor under everything above."""
    host = open_host(EvalSettings(device="cpu"), "cpu", 0)
    scenes = list(mini_sets.calibration(5, 20, 96))
    found = answer(host, [one.picture.open() for one in scenes], [one.text for one in scenes], max_new_tokens=4)
    assert all(one.text for one in found) and torch.get_num_threads() >= 1
    assert found[0].tokens > mini_host.VISUAL_TOKENS
