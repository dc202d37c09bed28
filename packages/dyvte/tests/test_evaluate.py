"""Evaluation: official formats, scores, exits, resuming, what is refused."""

import json

import pytest

from dyvte.costs import DecoderShape, prefill_flops
from dyvte.evaluation import run as evaluation
from dyvte.evaluation.model import ExitingHost, make_exit, open_exiting
from dyvte.evaluation.published import published
from dyvte.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.cli.settings import HostSettings
from tenfold.data import write
from tenfold.hosts.answers import Protocol
from tenfold.hosts.loading import load_host
from tenfold.testing.processes import in_ranks


@pytest.fixture(scope="module")
def host():
    return load_host(HostSettings(device="cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("gqa", "pope"):
        write.WRITERS[write.Format[name]](folder / name, 77, 4, 96)
    return folder


def evaluate(host, data, output, /, **changes):
    given = {"benchmark": "gqa", "data": str(data / "gqa"), "device": "cpu", "batch": 4, **changes}
    return evaluation.run_eval(EvalSettings(**given), 0, output, host=host)


def test_answers_scores_exits_and_costs_are_recomputable(host, data, tmp_path):
    """Accuracy by hand from the written predictions and the official question file; FLOPs from the exits."""
    (found,) = evaluate(host, data, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    gold = json.loads((data / "gqa" / "testdev_balanced_questions.json").read_text())
    right = [row["text"].lower().rstrip(".") == gold[row["id"]]["answer"] for row in rows]
    assert found.metrics["scores"]["accuracy"] == pytest.approx(sum(right) / len(rows))
    shape = DecoderShape.of(host.model.config)
    last = shape.layers - 1
    exits = [last if row["exit_layer"] is None else row["exit_layer"] for row in rows]
    assert found.metrics["mean_exit"] == pytest.approx(sum(exits) / len(exits))
    dense = sum(prefill_flops(r["visual_tokens"] + r["text_tokens"], r["visual_tokens"], None, shape) for r in rows)
    assert found.metrics["dense_gflops"] == pytest.approx(dense / len(rows) / 1e9)
    assert sum(found.metrics["exit_layers"].values()) == len(rows)


def test_batches_give_what_single_prompts_give(host, data, tmp_path):
    """Fails if one question's exit depends on those beside it."""
    for batch in (1, 3, 7):
        evaluate(host, data, tmp_path / str(batch), batch=batch)
    texts = [(tmp_path / str(batch) / "predictions.jsonl").read_text() for batch in (1, 3, 7)]
    assert texts[0] == texts[1] == texts[2]


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_files(host, data, tmp_path, monkeypatch):
    evaluate(host, data, tmp_path / "whole")
    calls, original = [], ExitingHost.answers

    def die(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(ExitingHost, "answers", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(host, data, tmp_path / "broken")
    assert not (tmp_path / "broken" / "run.json").exists()
    calls.append(1)
    evaluate(host, data, tmp_path / "broken")
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_ranks_answer_what_one_does(data, tmp_path):
    """Gloo: the questions are shared, the files the same."""
    given = EvalSettings(benchmark="gqa", data=str(data / "gqa"), device="cpu", batch=4)
    for world in (1, 2):
        in_ranks(lambda world=world: evaluation.run_eval(given, 0, tmp_path / str(world)), world)
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_other_settings_do_not_go_on(host, data, tmp_path, monkeypatch):
    original = ExitingHost.answers
    monkeypatch.setattr(ExitingHost, "answers", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(host, data, tmp_path / "run")
    monkeypatch.setattr(ExitingHost, "answers", original)
    with pytest.raises(UserError, match="another threshold"):
        evaluate(host, data, tmp_path / "run", threshold=1.0)


def test_dense_fixed_and_dynamic_are_told_apart(host, data, tmp_path):
    """No gates: nothing saved. Before the first layer: the image costs nothing."""
    (dense,) = evaluate(host, data, tmp_path / "dense", gates="none")
    (blind,) = evaluate(host, data, tmp_path / "blind", exit_at=-1)
    (fastv,) = evaluate(
        host, data, tmp_path / "fastv", fastv=True, exit_at=host.model.config.text_config.num_hidden_layers - 1
    )
    assert dense.metrics["saved"] == 0 and set(dense.metrics["exit_layers"]) == {"never"}
    assert blind.metrics["saved"] > 0.5 and set(blind.metrics["exit_layers"]) == {"-1"}
    assert fastv.metrics["questions"] == dense.metrics["questions"]


def test_all_benchmarks_of_a_folder_are_asked_and_done_once(host, data, tmp_path):
    said = []
    settings = EvalSettings(data=str(data), device="cpu", limit=3)
    first = evaluation.run_eval(settings, 0, tmp_path / "all", host=host)
    again = evaluation.run_eval(settings, 0, tmp_path / "all", said.append, host=host)
    assert [one.benchmark.name for one in first] == ["pope", "gqa"] or {o.benchmark.name for o in first} == {
        "pope",
        "gqa",
    }
    assert [one.metrics for one in first] == [one.metrics for one in again] and len(said) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"benchmark": "nonsense"}, "nonsense"),
        ({"split": "nonsense"}, "unknown split"),
        ({"data": "nowhere"}, "no such folder"),
        ({"benchmark": "all", "data": "."}, "no benchmark's folder"),
        ({"benchmark": "all", "split": "val"}, "a split for all"),
        ({"gates": "nowhere"}, "no such gates"),
        ({"exit_at": 99}, "exit_at 99"),
        ({"device": "cuda"}, "no such CUDA device"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_writes_nothing(host, data, tmp_path, changes, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        evaluate(host, data, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_broken_picture_is_named(host, tmp_path):
    write.WRITERS[write.Format["gqa"]](tmp_path / "gqa", 5, 2, 96)
    picture = next((tmp_path / "gqa" / "images").iterdir())
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(UserError, match=picture.name):
        evaluate(host, tmp_path, tmp_path / "run")


def test_gates_for_another_host_and_shipped_ones_elsewhere_are_refused(host, tmp_path):
    from dyvte_releases import tiny_gates

    tiny_gates(tmp_path / "gates")
    with pytest.raises(UserError, match="gates for 2 layers"):
        open_exiting(EvalSettings(gates=str(tmp_path / "gates")), host=host)
    with pytest.raises(UserError, match="no gates are shipped"):
        make_exit(EvalSettings(model="llava-hf/llava-1.5-7b-hf"))


def test_the_papers_scores_stand_beside_llava():
    assert published("llava-hf/llava-1.5-7b-hf", "pope") == 81.6
    assert published("llava-hf/llava-1.5-13b-hf", "gqa") == 62.3
    assert published("mini", "gqa") is None


def test_the_mini_host_is_asked_in_its_own_template(host):
    assert open_exiting(EvalSettings(device="cpu"), host=host).protocol is Protocol.processor
