"""Tokens, parameters and multiply-accumulates against the sheet's tables and torch's FLOP counter."""

import pytest
import torch
from llava_hr_fixtures import tiny_config, tiny_model
from llava_hr_releases import OFFICIAL_KEYS
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration

from llava_hr import costs
from llava_hr.configuration import LlavaHrConfig
from llava_hr.cost_rows import prefills, rows
from llava_hr.evidence.speed import llava_config
from llava_hr.modeling import meta_model

# Section 9: GMACs of ConvNeXt, ViT, adapters, align, projector, language model; all; TFLOPs; share of vision in %.
TABLE = {
    ("7b", 384): (101.0, 190.6, 3.6, 1.5, 12.1, 4224.8, 4533.5, 9.07, 6.8),
    ("7b", 768): (403.9, 190.6, 8.7, 1.5, 12.1, 4224.8, 4841.6, 9.68, 12.7),
    ("7b", 1024): (718.1, 361.4, 15.5, 2.7, 21.5, 7328.0, 8447.1, 16.89, 13.2),
    ("7b", 1536): (1615.6, 958.1, 34.8, 6.0, 48.3, 16774.3, 19437.1, 38.87, 13.7),
    ("13b", 1024): (718.1, 361.4, 15.5, 2.7, 32.2, 14234.8, 15364.6, 30.73, 7.4),
    ("x-13b", 1024): (3167.4, 361.4, 42.0, 4.3, 32.2, 14234.8, 17842.2, 35.68, 20.2),
    ("LLaVA-1.5-7B", 336): (0, 191.0, 0, 0, 12.1, 4224.8, 4427.8, 8.86, 4.6),
    ("LLaVA-1.5-7B", 448): (0, 361.8, 0, 0, 21.5, 7328.0, 7711.3, 15.42, 5.0),
    ("LLaVA-1.5-7B", 672): (0, 958.6, 0, 0, 48.3, 16774.3, 17781.2, 35.56, 5.7),
    ("LLaVA-1.5-7B", 1022): (0, 3009.2, 0, 0, 111.8, 42512.2, 45633.1, 91.27, 6.8),
}
TOKENS = {("7b", 384): 576, ("7b", 768): 576, ("7b", 1024): 1024, ("7b", 1536): 2304}
LLAVA_TOKENS = {336: 576, 448: 1024, 672: 2304, 1022: 5329}


def test_the_table_of_section_9_comes_out():
    """Fails if one coefficient of one formula is wrong: every cell to its last printed digit."""
    found = {}
    for name, shape, size in prefills():
        prefill = costs.prefill(shape, size)
        parts = (
            prefill.conv,
            prefill.vit,
            prefill.adapters,
            prefill.align,
            prefill.projector,
            prefill.llm,
            prefill.total,
        )
        found[name, size] = (
            *(round(macs / 1e9, 1) for macs in parts),
            round(prefill.tflops, 2),
            round(100 * prefill.vision_share, 1),
        )
    assert found == TABLE


def test_visual_tokens_of_section_3():
    for (name, size), tokens in TOKENS.items():
        assert costs.visual_tokens(costs.NAMED[name], size) == tokens
        assert LlavaHrConfig.named(name, size).num_image_tokens == tokens
    for size, tokens in LLAVA_TOKENS.items():
        assert costs.visual_tokens(costs.LLAVA_7B, size) == tokens
    assert [costs.low_size(costs.NAMED["7b"], size) for size in (384, 768, 1024, 1536)] == [336, 336, 448, 672]


def test_the_headline_of_section_9():
    """At about 1024 pixels 5.4 times fewer FLOPs and 5.2 times fewer visual tokens; the adapters cost 0.18 %."""
    ours, theirs = costs.prefill(costs.NAMED["7b"], 1024), costs.prefill(costs.LLAVA_7B, 1022)
    assert round(theirs.total / ours.total, 1) == 5.4
    assert round(100 * (1 - ours.total / theirs.total), 1) == 81.5
    assert round(5329 / 1024, 1) == 5.2
    assert round(100 * ours.adapters / ours.total, 2) == 0.18
    assert costs.kv_bytes(costs.VICUNA_7B, 1024) / costs.kv_bytes(costs.VICUNA_7B, 5329) == 1024 / 5329


@pytest.mark.parametrize("name", ["7b", "13b", "x-13b"])
def test_parameters_of_section_4(name):
    """Fails if a bias, a norm or a layer scale is forgotten: every count equals the golden one."""
    shape, golden = costs.NAMED[name], OFFICIAL_KEYS["parameter_counts"][f"llava-hr-{name}"]
    sizes, head = costs.parameters(shape), costs.head_parameters(shape.conv)
    assert (sizes.conv, sizes.vit, sizes.adapters) == (golden["convnext_used"], golden["clip"], golden["mr_adapters_3"])
    assert (sizes.align, sizes.projector, sizes.llm) == (golden["final_align"], golden["projector"], golden["llm"])
    assert head == golden["convnext_head"] and sizes.total + head == golden["total"]
    assert costs.stage1_parameters(shape) == golden["stage1_trainable"]
    assert costs.Shape.of(LlavaHrConfig.named(name)) == shape


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("7b", 1024),
        pytest.param("x-13b", 1024, marks=pytest.mark.slow),
        pytest.param("7b", 384, marks=pytest.mark.slow),
    ],
)
def test_torch_counts_the_same_at_full_size(name, size):
    """Fails if a formula and the model differ by one multiplication, in any part. At 384 pixels grids differ."""
    assert costs.counted(meta_model(name), size) == costs.prefill(costs.NAMED[name], size)


@pytest.mark.parametrize("adapters", [True, False])
def test_torch_counts_the_same_on_a_tiny_model(adapters):
    """On real numbers, where attention is fused; stage-1 models have no adapters."""
    config = tiny_config(adapters=adapters)
    shape = costs.Shape.of(config)
    assert costs.counted(tiny_model(config=config), 64, 7) == costs.prefill(shape, 64, 7)
    assert (costs.prefill(shape, 64, 7).adapters > 0) == adapters
    # What has no place in the model: CLIP's last norm.
    assert costs.parameters(shape).total - 2 * 16 == sum(p.numel() for p in tiny_model(config=config).parameters())


def test_torch_counts_the_same_of_llava():
    """The other side of the comparison, transformers' LLaVA-1.5 at 1022 pixels and full size, class token included."""
    config = llava_config(LlavaHrConfig.named("7b"), 1022)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).eval()
        pixels, embeds = torch.zeros(1, 3, 1022, 1022), torch.zeros(1, 5329 + 60, 4096)
        mask = torch.ones(1, 1, 5389, 5389, dtype=torch.bool)
    expected = costs.prefill(costs.LLAVA_7B, 1022)
    with torch.no_grad(), FlopCounterMode(display=False) as vision:
        model.get_image_features(pixels, output_hidden_states=True)
    assert vision.get_total_flops() == 2 * expected.vision
    with torch.no_grad(), FlopCounterMode(display=False) as language:
        model.model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    counts = language.get_flop_counts()
    layers = [sum(counts[f"LlamaModel.layers.{number}"].values()) for number in range(32)]
    assert sum(layers) == 2 * expected.llm


def test_a_decoding_step_is_a_prefill_of_one_more_token():
    """Attention over n + 1 tokens less that of n tokens among themselves. Fails if the cache's length is off by one."""
    decoder, tokens = costs.VICUNA_7B, 1084
    step = costs.decode_macs(decoder, tokens + 1)
    difference = costs.llm_macs(decoder, tokens + 1) - costs.llm_macs(decoder, tokens)
    # The whole square counts the older rows against the new column, too.
    assert difference - step == decoder.layers * 2 * tokens * decoder.width


def test_grouped_heads_cost_less():
    """A language model with fewer key/value heads. Fails if its keys are counted at full width."""
    config = tiny_config()
    config.text_config.num_key_value_heads = 2
    shape = costs.Shape.of(config)
    assert shape.decoder.kv == 12
    assert costs.counted(tiny_model(config=config), 64, 7) == costs.prefill(shape, 64, 7)
    assert costs.parameters(shape).llm == sum(
        p.numel()
        for name, p in tiny_model(config=config).named_parameters()
        if name.startswith(("model.language_model", "lm_head"))
    )


def test_published_numbers_stand_beside_the_computed_ones():
    """Fails if a row of the paper's tables is left out, or a difference is not the computed less the published."""
    found = {row.name: row for row in rows()}
    assert len(found) == 8 + 3 + 2 + 10
    assert all(row.difference == 0 for name, row in found.items() if name.startswith("tokens"))
    assert found["parameters, 13b"].difference == pytest.approx(13.571846315 - 13.4)
    assert abs(found["language model of 7b, 1,400 tokens"].difference) < 0.05
    assert abs(found["language model of 13b, 1,400 tokens"].difference) < 0.05
    assert found["prefill, 7b 1024 px"].published is None and found["prefill, 7b 1024 px"].difference is None
