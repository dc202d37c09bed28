"""What users of such methods asked for, one test each (numbers of the list in the package's sheet).

Not here: 5 (VQAv2's local score and its split) is in test_meter_eval.py, 6 (resolutions of METER) in test_meter.py, 1
and 13 of LaVIN in test_lavin.py; the six prompt formats of 7 are a golden case. Hosts over several devices (3) are in
test_peers.py; a quantised base is tried (13), a row of the bench with one is not there.
"""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from eas_fixtures import Prompts, build, greedy, skipper
from torch import nn

from eas import costs
from eas.checkpoints.folder import About, load_folder, save_folder
from eas.data.records import Record, check_format, check_leak
from eas.evaluation import scores
from eas.evidence import speed
from eas.evidence.settings import BenchSettings
from eas.result import SearchResult
from eas.search import RULES, Search
from tenfold import UserError
from tenfold.runs.predictions import PredictionLog

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_need_01_the_batch_size_does_not_move_an_answer():
    """Fails if tokens differ between batches of 1, 2 and 64."""
    prompts = Prompts("llava")
    rows = [[("image", 4), 3 + number % 5] for number in range(64)]
    inputs = prompts.batch(rows, "left")
    with torch.no_grad(), skipper((0, 2))(model := build("llava")):
        whole, _ = greedy(model, inputs, steps=3)
        for size in (1, 2):
            part = {key: value[:size] for key, value in inputs.items()}
            assert torch.equal(greedy(model, part, steps=3)[0], whole[:size])


def test_need_02_ranks_answer_every_question_once(tmp_path):
    """Fails if a question is asked twice or by nobody when ranks share an evaluation."""
    ids = [str(number) for number in range(11)]
    logs = [PredictionLog(tmp_path, {"a": 1}, rank, 2) for rank in (0, 1)]
    asked = [one for log in logs for one in log.todo(ids)]
    assert sorted(asked) == sorted(ids)


def sibling(name):
    """Another test file of this folder; other packages have files of the same names."""
    spec = spec_from_file_location(f"eas_{name}", Path(__file__).parent / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_need_02_checkpointing_and_need_04_the_batch_of_a_device_move_nothing():
    """Fails if a checkpointed block computes another formula, or 4 x 1, 2 x 2 and 1 x 4 samples end elsewhere."""
    sibling("test_properties").test_gradient_checkpointing_gives_the_same_gradients()
    sibling("test_training").test_accumulation_moves_nothing_but_rounding()


def tiny_bench(monkeypatch):
    monkeypatch.setattr(costs, "LLAMA_7B", costs.Shape(64, 96, 4, 50, 4, 4))
    settings = BenchSettings(device="cpu", dtype="float32", prompt=12, tokens=2, rounds=1, adapter=4, pia=8)
    return speed.run_bench(settings, 0, None)


def test_need_03_the_bench_says_milliseconds_a_token(monkeypatch):
    """Fails if a row of the bench lacks seconds of prefill or of a decoded token, or the realised share."""
    record = tiny_bench(monkeypatch)
    assert set(record["subjects"]) == {"plain", "adapters", "unmerged", "folded"}
    for row in record["subjects"].values():
        assert row["decode"]["seconds"] > 0 and row["prefill"]["speedup"]["realised_over_predicted"] > 0
    assert record["subjects"]["folded"]["decode"]["speedup"]["predicted"] > 1
    assert record["skipping_alone"]["decode"]["predicted"] > 1


def test_need_04_what_is_evaluated_is_said(tmp_path):
    """Fails if a folder of adapters does not say its list, its host and where the list comes from."""
    save_folder(skipper(), tmp_path / "a", About(width=32, host="sha256:ab", search="cd"))
    card = (tmp_path / "a" / "README.md").read_text()
    assert "layers 1, 3 of 4" in card and "sha256:ab" in card and "`cd`" in card


def test_need_07_another_prompt_format_is_refused():
    """Fails if a QCM-LEPA file passes for weights that were tuned on QCM-ALE."""
    with pytest.raises(UserError, match="QCM-LEPA"):
        check_format("QCM-ALE", [Record("1", "?", "LECTURE: x\n###\nANSWER: B.")], "test.json")


def test_need_08_the_letter_of_an_answer():
    """Fails if one of the forms that models write is not read, or none of them becomes a letter."""
    assert [scores.option(text, 4) for text in ("B", "B.", "The answer is B.", "none")] == [1, 1, 1, None]


def test_need_09_weights_that_were_not_loaded_are_said(tmp_path):
    """Fails if a missing weight of the method stays at its start."""
    from safetensors.torch import load_file, save_file

    save_folder(skipper(), tmp_path / "a", About(width=32))
    weights = load_file(tmp_path / "a" / "adapters.safetensors")
    del weights["layers.1.pia.C.weight"]
    save_file(weights, tmp_path / "a" / "adapters.safetensors")
    with pytest.raises(UserError, match=r"1 weights are missing, first layers\.1\.pia\.C\.weight"):
        load_folder(tmp_path / "a")


def test_need_10_a_test_set_that_was_trained_on_is_refused():
    """Fails if a question with the same picture is in both files and nobody says so."""
    with pytest.raises(UserError, match="were trained on"):
        check_leak([Record("1", "?", "a", Path("x/1.png"))], [Record("7", "?", "b", Path("y/1.png"))], "test.json")


def result():
    search = Search(RULES["llava"], sites=6, removed=2)
    search.update([(0,), (1,), (2,), (3,), (4,)], torch.tensor([2.0, 0.1, 0.4, 1.0, 1.0]))
    return SearchResult.of(search, seed=3, host="h", data="d")


def test_need_11_a_search_is_a_file(tmp_path):
    """Fails if saving, loading, the hash or the plan of a search differ, or a list that it does not give passes."""
    found = result()
    found.save(tmp_path / "search.json")
    again = SearchResult.load(tmp_path / "search.json")
    assert again == found and again.sha256 == found.sha256 and again.plan(pia_rank=8).skip == (1, 2)
    content = json.loads((tmp_path / "search.json").read_text())
    for change in (
        {"skip": [0, 1]}, {"preferences": [float("nan")] * 6}, {"preferences": [1, 2]}, {"sites": "6"}, {"rule": "x"},
        {"margin": None}, {"more": 1}, {"format": "y"},
    ):  # fmt: skip
        (tmp_path / "bad.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError) as error:
            SearchResult.load(tmp_path / "bad.json")
        assert "\n" not in str(error.value)


def test_need_12_the_cache_has_no_dead_layers():
    """Fails if a skipped attention has a slot: 2 of 4 layers skipped, half the bytes."""
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    model = build("llava")
    with torch.no_grad():
        full = model(**inputs, use_cache=True).past_key_values
        with skipper((0, 3))(model):
            left = model(**inputs, use_cache=True).past_key_values
    assert len(left.layers) == 2
    assert 2 * sum(one.keys.nbytes for one in left.layers) == sum(one.keys.nbytes for one in full.layers)


def test_need_13_a_quantised_base_keeps_the_adapters_beside_it():
    """Fails if un-merged blocks read a base's weights, which a quantised one does not have as matrices."""
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    model = build("llava")

    class Opaque(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.run = inner.forward

        def forward(self, tokens):
            return self.run(tokens)

    with torch.no_grad(), skipper()(model):
        expected = model(**inputs).logits
        for layer in model.model.language_model.layers:
            for name in ("gate_proj", "up_proj", "down_proj"):
                setattr(layer.mlp, name, Opaque(getattr(layer.mlp, name)))
        assert torch.equal(model(**inputs).logits, expected)


def test_need_14_what_cannot_be_exported_is_said():
    """Fails if the README promises an export to formats that have no place for a prompt's own vectors."""
    assert "`per_layer_config`" in README and "no exact export" in README


def test_need_15_a_baseline_that_trains_nothing():
    """Fails if removing one attention at a time is not among the verbs and the arms."""
    from eas.evidence.findings import ARMS

    assert "sensitivity" in ARMS and "eas sensitivity" in README
