"""What users of the authors' code and of its relatives asked for, by the number under which it is listed."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from gamma_mod_fixtures import converted, generate, labels_of, layers_of, prompts
from gamma_mod_training import tiny_settings

import gamma_mod
from gamma_mod import convert, costs, kv_lengths, measure_skips, train_only
from gamma_mod.evaluation.layers import run_arank
from gamma_mod.evaluation.settings import ArankSettings
from gamma_mod.training.run import run_train
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.testing.hosts import build

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_need_01_where_the_ranks_are_and_how_layers_follow(tmp_path):
    """Gamma-MOD#5. Json, plot and list; ties keep the earlier layer dense. Exact ranks: golden case arank."""
    ranking = run_arank(ArankSettings(samples=3, device="cpu", num_dense=2), 0, tmp_path / "run")
    assert {path.name for path in ranking.files} == {"arank.json", "arank.png", "layers.txt"}
    text = (tmp_path / "run" / "layers.txt").read_text()
    assert text == ",".join(map(str, ranking.layers)) + "\n" and len(ranking.layers) == len(ranking.ranks) - 2
    assert gamma_mod.select_layers([2.0, 2.0, 2.0], num_dense=1) == (1, 2)


def test_need_02_ratio_and_skip_are_told_apart():
    """Gamma-MOD#4. r, (T - k) / T in training, and the realised skip of prompts and generated tokens."""
    model, inputs = converted(routing_ratio=0.5, prefill_threshold=0.5), prompts()
    with measure_skips() as training:
        model.train()(**inputs, labels=labels_of(inputs))
    with measure_skips() as skips:
        generate(model.eval(), inputs)
    assert 0 < training.ratio("training") < 0.5 and skips.prefill is not None and skips.decode is not None
    assert "training" in skips.table() and "prefill" in skips.table() and "decode" in skips.table()
    assert "## Routing ratio and skip ratio" in README


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "internvl"])
def test_need_03_another_language_model_needs_no_file_changed(host):
    """Gamma-MOD#2. `convert(model, ...)`: forward, backward, generate."""
    model, inputs = convert(build(host), (1, 2)), prompts(host)
    model.train()(**inputs, labels=labels_of(inputs)).loss.backward()
    assert generate(model.eval(), inputs, steps=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_need_04_training_starts_with_the_names_of_the_readme(tmp_path):
    """Gamma-MOD#2 (2025): the released scripts do not run. The README's command is run by test_readme."""
    assert "gamma-mod train --config mini" in README
    assert run_train(tiny_settings(stage={"epochs": 1, "steps": 1}), 0, tmp_path / "run").metrics["steps"] == 1


def test_need_05_why_routing_looks_alike_in_all_layers():
    """Gamma-MOD#7. Jaccard index of the patches that neighbouring converted layers skip."""
    model, inputs = converted(layers=(1, 2, 3), prefill_threshold=0.5), prompts(rows=[[("image", 4), 6]])
    visual = structure.visual_mask(model, inputs)
    with torch.no_grad(), measure_skips(keep_tensors=True) as skips:
        model(**inputs)
    found = skips.overlap(visual)
    first, second = (~skips.kept["prefill", layer][0] & visual for layer in (1, 2))
    assert found[1, 2] == pytest.approx((first & second).sum().item() / (first | second).sum().item())
    assert set(found) == {(1, 2), (2, 3)} and all(0 <= value <= 1 for value in found.values())
    assert "Jaccard" in README


def test_need_06_other_routers_are_refused_by_name():
    """Gamma-MOD#6: an MLP made no difference, its author says."""
    with pytest.raises(UserError, match="router 'mlp'"):
        convert(build("llava"), (1, 2), router="mlp")
    assert "no difference with an MLP" in README


def test_need_07_an_untrained_conversion_generates():
    """astramind#7, LlamaFactory#3288: generate() crashes there. With thresholds of 0 nothing is skipped."""
    model, inputs = convert(build("llava"), (1, 2)), prompts()
    assert generate(model, inputs).shape[1] > inputs["input_ids"].shape[1]
    model.gamma_mod.configure(prefill_threshold=0.0, decode_threshold=0.0)
    with measure_skips() as skips:
        generate(model, inputs)
    assert skips.prefill == skips.decode == 0


def test_need_08_adapting_in_bfloat16_stays_finite():
    """LlamaFactory#3288, D-LLM#1. Fifty steps stand in test_training_pass; p never amplifies."""
    model, inputs = convert(build("llava"), (1, 2)), prompts()
    with measure_skips(keep_tensors=True) as skips:
        loss = model.train()(**inputs, labels=labels_of(inputs)).loss
    p = torch.cat([found[0].flatten() for found in skips.probabilities.values()])
    assert torch.isfinite(loss) and p.min() > 0 and p.max() < 1


def test_need_09_the_router_is_one_parameter_for_deepspeed():
    """astramind#12. ZeRO-2 and ZeRO-3 on two ranks stand in test_train; here: one name, called from every layer."""
    model = convert(build("llava"), (1, 2))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if "router" in name]
    assert names == ["model.language_model.router.weight"]


def test_need_10_the_router_alone_can_train(caplog):
    """astramind#1: it can, with a warning. Training it stands in test_training_pass."""
    model = convert(build("llava"), (1, 2))
    train_only(model, "router")
    assert "unstable" in caplog.text
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.language_model.router.weight"]
    assert "known to be unstable" in README


def test_need_11_decoding_needs_no_top_k():
    """sramshetty PR#4: top-k looks ahead. Decisions on generated tokens are thresholds on their own probability."""
    model, inputs = converted(prefill_threshold=0.4, decode_threshold=0.5), prompts()
    with measure_skips(keep_tensors=True) as skips:
        generate(model, inputs)
    for layer in (1, 2):
        p, kept = (torch.cat(found["decode", layer], 1) for found in (skips.probabilities, skips.kept))
        assert torch.equal(kept, p >= 0.5)


def test_need_12_equal_flops_can_be_compared():
    """kyegomez#152, astramind#18."""
    dense = costs.model_flops(costs.VICUNA_7B, 1400, 0.0, 0)
    assert costs.training_flops(costs.VICUNA_7B, 1400, 1059, 0.5, 28) < dense
    assert costs.model_flops(costs.VICUNA_7B, 1400, 0.577) / dense == pytest.approx(0.483, abs=0.001)


def test_need_13_what_is_skipped_is_not_computed():
    """FastV#22, VisionZip#29. No product of a skipped token, none at all of a layer that skips a step; `bench`
    measures it."""
    model, inputs = converted(prefill_threshold=0.5, decode_threshold=1.0), prompts(rows=[[("image", 4), 6]])
    seen = []
    layers_of(model)[1].mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1]))
    output = generate(model, inputs, steps=3, return_dict_in_generate=True)
    assert seen == [kv_lengths(output.past_key_values)[1][0]]
    assert "gamma-mod bench" in README


def test_need_14_a_batch_does_not_change_answers():
    """llama.cpp#9233. All paddings and hosts stand in test_hosts."""
    model, inputs = converted(prefill_threshold=0.5), prompts()
    single = prompts(rows=[[("image", 4), 6]])
    assert torch.equal(generate(model, inputs)[0, -6:], generate(model, single)[0, -6:])


def test_need_15_llava_hr_composes():
    """Converted with nothing skipped it equals the unconverted one: test_composition."""
    text = (Path(__file__).parent / "test_composition.py").read_text()
    assert "llava_hr" in text and not re.search(r"import llava_hr|from llava_hr", inspect.getsource(gamma_mod))
    assert copy.copy(gamma_mod.__all__)
