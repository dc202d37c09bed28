"""What users of exits and pruners asked for, one test a need; a sentence of the README where that is the answer."""

import copy
import time
from pathlib import Path

import pytest
import torch
from dyvte_fixtures import SPECIAL, THRESHOLD, host, rows, single
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from dyvte import FastV, VisualExit, calibrate, costs
from dyvte.exits import mean_exit
from tenfold import UserError
from tenfold.testing.hosts import SCENARIOS, Prompts

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
OPTIONS = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SPECIAL}


class Largest(TorchDispatchMode):
    """The largest tensor that a computation makes, in elements, and the shapes of those with two axes of a length."""

    def __init__(self, length):
        super().__init__()
        self.length, self.most, self.maps = length, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
                if list(tensor.shape).count(self.length) > 1 and tensor.ndim == 4 and tensor.shape[1] > 1:
                    self.maps.append(tuple(tensor.shape))
        return output


def test_need_01_decode_and_prefill_are_measured_apart():
    """ "No faster in decode with KV cache": the bench tells both, each with its own bound."""
    from dyvte.evidence.settings import BenchSettings
    from dyvte.evidence.speed import run_bench

    small = {"hidden": 32, "intermediate": 64, "heads": 2, "width": 8, "visual": 24, "prefix": 4, "text": 5}
    found = run_bench(BenchSettings(device="cpu", layers=4, dtype="float32", repeats=1, decode_tokens=2, **small), 0)
    assert found["exit_layer"] == 2 and found["tokens"] == 33
    for part in ("prefill", "decode"):
        assert {"predicted", "realised", "realised_over_predicted", "median_of_pairs"} <= found[part].keys()
    assert found["prefill"]["predicted"] > found["decode"]["predicted"] > 1
    dense, left = found["kv_bytes"]["dense"], found["kv_bytes"]["exit"]
    assert left == costs.kv_bytes(33, 24, 2, costs.DecoderShape(4, 32, 64, 32, 32)) < dense


@torch.no_grad()
def test_need_02_no_map_of_all_tokens_is_made():
    """Works with SDPA and no rise in memory. Fails if a gate, FastV or the analysis asks for attention maps."""
    model, gates = host()
    inputs = single(rows(), 2)
    length = inputs["input_ids"].shape[1]
    with Largest(length) as dense:
        model(**inputs, use_cache=False)
    for exit in (VisualExit(gates, THRESHOLD), VisualExit(gates, THRESHOLD, fastv=FastV())):
        with exit(model), Largest(length) as seen:
            model(**inputs, use_cache=False)
        assert seen.maps == dense.maps == [] and seen.most <= dense.most


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_need_03_with_and_without_a_cache_agree(name):
    """Fails if without a cache the answer's own tokens enter the decision."""
    model, gates = host(name)
    inputs = Prompts(name).batch(*SCENARIOS["left padding"])
    with VisualExit(gates, THRESHOLD)(model) as exit:
        cached = model.generate(**inputs, **OPTIONS)
        exits = exit.exit_layers()
        assert torch.equal(cached, model.generate(**inputs, use_cache=False, **OPTIONS))
        assert exit.exit_layers() == exits
        with exit.hold():  # passes of one's own
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            extra = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
            for step in range(3):
                kinds = {"mm_token_type_ids": (ids == 3).int()} if name.startswith("qwen") else {}
                logits = model(input_ids=ids, attention_mask=mask, **extra, **kinds, use_cache=False).logits[:, -1]
                logits[:, SPECIAL] = -torch.inf
                assert torch.equal(logits.argmax(-1), cached[:, inputs["input_ids"].shape[1] + step])
                ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
                mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)


def test_need_04_serving_engines_are_answered():
    """vLLM and SGLang: said in the README, with the table for a fixed exit as the way out."""
    from dyvte.commands.app import app

    row = next(line for line in README.splitlines() if line.startswith("| vLLM"))
    assert "not served" in row and "dyvte flops" in row
    assert CliRunner().invoke(app, ["flops", "--every", "8"]).exit_code == 0


@torch.no_grad()
def test_need_05_several_images_leave_together_and_batch_is_single():
    """All images of a row leave; gates read the text after the last one."""
    model, gates = host()
    two = [("image", 4), 4, ("image", 4), 6]
    batch = Prompts("llava").batch([two, [("image", 4), 5]])
    with VisualExit(gates, THRESHOLD)(model) as exit:
        model(**batch)
        together = exit.exit_layers()
        last = exit.entering[-1]
        alone = Prompts("llava").batch([two])
        model(**alone)
        assert exit.exit_layers() == together[:1]
    assert together[0] is not None and last.num_visual[0] == 0


@torch.no_grad()
def test_need_06_a_second_turn_sees_what_is_left_and_a_new_image_is_gated_again():
    """What has left is gone, said in the README; no silent state: a new image gets its own exit."""
    model, gates = host()
    prompts = Prompts("llava")
    first = prompts.batch([[("image", 4), 6]])
    second = prompts.batch([[("image", 4), 3]], prefix=[])
    width = first["input_ids"].shape[1]
    with VisualExit(gates, -50.0)(model) as exit:
        cache = model(**first, use_cache=True).past_key_values
        assert exit.exit_layers(cache) == [0]
        mask = torch.ones(1, width + second["input_ids"].shape[1], dtype=torch.int64)
        model(
            input_ids=second["input_ids"],
            pixel_values=second["pixel_values"],
            attention_mask=mask,
            past_key_values=cache,
        )
        assert exit.exit_layers(cache) == [0] and len(exit.kv_lengths(cache)) == 4
        assert exit.kv_lengths(cache)[1] == [width - 16 + 3]
    assert "start a new cache to look again" in README


@torch.no_grad()
def test_need_07_fastv_beside_it_is_the_one_of_k_2_and_half():
    """Fails if another layer or share is pruned; the numbers are the golden case's."""
    model, gates = host()
    with VisualExit(gates, threshold=float("inf"), fastv=FastV())(model) as exit:
        model(**single(rows(), 0))
        assert [tokens.num_visual[0] for tokens in exit.entering] == [16, 16, 8, 8, 8]


@torch.no_grad()
def test_need_08_another_exit_layer_gives_other_logits_and_costs():
    """ "Accuracy does not change when I change the exit layer"."""
    model, _ = host()
    inputs, found = single(rows(), 0), []
    for layer in (-1, 0, 1, 2, 3):
        with VisualExit(exit_at=layer)(model):
            found.append(model(**inputs).logits[0, -1])
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[i + 1 :])
    torch.testing.assert_close(found[-1], model(**inputs).logits[0, -1])
    ids = inputs["input_ids"][0]
    at = (ids != 3).nonzero()[:, 0]
    words = model.get_input_embeddings()(ids[at])[None]
    torch.testing.assert_close(found[0], model(inputs_embeds=words, position_ids=at[None]).logits[0, -1])


def test_need_09_the_trainer_runs_on_the_current_stack_and_resumes():
    """Held by test_train.test_a_killed_training_goes_on_with_the_same_bits; here: the shipped configs open."""
    from dyvte.training.settings import TrainSettings
    from tenfold.cli.config import load_config

    assert [load_config(TrainSettings, name).batch for name in ("mini", "llava-1.5-7b", "llava-1.5-13b")] == [
        64,
        128,
        128,
    ]


@torch.no_grad()
def test_need_10_assisted_decoding_is_refused_by_name():
    model, gates = host()
    inputs = single(rows(), 0)
    with VisualExit(gates)(model):
        for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": copy.copy(model)}):
            with pytest.raises(UserError, match="assisted generation"):
                model.generate(**inputs, **OPTIONS, **options)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 7])
def test_need_11_the_batch_size_does_not_change_answers(size):
    """Fails if exits or tokens depend on the rows beside a prompt."""
    model, gates = host()
    inputs = rows(lengths=(6, 3, 9, 5, 4, 12, 7))
    with VisualExit(gates, THRESHOLD)(model) as exit:
        whole = model.generate(**inputs, **OPTIONS)[:, -3:]
        exits, found, told = exit.exit_layers(), [], []
        for start in range(0, 7, size):
            part = {name: value[start : start + size] for name, value in inputs.items()}
            found.append(model.generate(**part, **OPTIONS)[:, -3:])
            told += exit.exit_layers()
    assert torch.equal(torch.cat(found), whole) and told == exits and len(set(exits)) > 1


def test_need_12_and_13_hold_elsewhere():
    """Never-exit and text-only prompts, interleaved generations: the names of the tests that hold them."""
    test_exit = sibling("test_exit")

    for name in (
        "test_rows_that_never_exit_equal_the_dense_model_bit_for_bit",
        "test_text_only_prompts_equal_the_dense_model_bit_for_bit",
        "test_two_interleaved_generations_keep_their_own_exits",
    ):
        assert callable(getattr(test_exit, name))


def test_need_14_the_flops_formula_is_in_the_open():
    """The command's row is the formula's."""
    from dyvte.commands.app import app

    told = CliRunner().invoke(app, ["flops", "--every", "17"])
    assert told.exit_code == 0
    encoder = costs.CLIP_L_336 + costs.projector_flops(576, 4096)
    for exit_layer in (-1, 16, None):
        assert f"{(encoder + costs.prefill_flops(640, 576, exit_layer, costs.LLAMA_7B)) / 1e12:.2f}" in told.output


@torch.no_grad()
def test_need_15_a_budget_is_a_knob():
    """Within a quarter of a layer on the calibration samples."""
    model, gates = host()
    samples = [rows(lengths=(6, 3, 9, 5, 4, 12, 7))]
    threshold = calibrate(model, gates, samples, mean_exit=1.0)
    with VisualExit(gates, threshold)(model) as exit:
        model(**samples[0])
        assert abs(mean_exit(exit.exit_layers(), 4) - 1.0) <= 0.25


def count_waits(monkeypatch):
    """Every place in the package where the host would wait for a device."""
    import traceback

    waits = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "cpu"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name, **kwargs):
            frame = traceback.extract_stack(limit=2)[0]
            if "/dyvte/src/dyvte/" in frame.filename or frame.filename.endswith("hosts/ragged.py"):
                waits.append((name, Path(frame.filename).name, frame.lineno))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return waits


@torch.no_grad()
@pytest.mark.parametrize("compact_every", [1, 2, 4])
def test_waits_are_at_most_one_a_compaction_and_none_in_decoding(monkeypatch, compact_every):
    """Fails if a gate's decision is read on the host, layer by layer, as the released code does."""
    model, gates = host()
    inputs = rows()
    with VisualExit(gates, threshold=float("inf"), compact_every=compact_every)(model):
        waits = count_waits(monkeypatch)
        cache = model(**inputs, use_cache=True).past_key_values
        layers = [wait for wait in waits if wait[1] == "passes.py"]
        assert len(layers) == -(-4 // compact_every) and len(waits) - len(layers) <= 2  # two describe the prompt
        waits.clear()
        mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)), 1)
        model(input_ids=torch.tensor([[11], [12], [13]]), attention_mask=mask, past_key_values=cache)
        assert waits == []


def test_an_import_and_a_help_take_no_torch():
    """The command line answers without loading torch."""
    import subprocess
    import sys

    code = "import sys, dyvte, dyvte.commands.app; assert 'torch' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - start < 120


def sibling(name):
    """Another test file of this folder; other packages have files of the same names."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location(f"dyvte_{name}", Path(__file__).parent / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
