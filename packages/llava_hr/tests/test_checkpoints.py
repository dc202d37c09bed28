"""Names, shapes and configs: official LLaVA-HR against this package, at full size and tiny."""

import copy
import json

import pytest
import torch
from llava_hr_fixtures import tiny_config, tiny_model
from llava_hr_releases import CONFIG, CONVNEXT, OFFICIAL_KEYS, UNUSED, VIT, golden_weights, tiny_weights

from llava_hr.checkpoints.convert import key_report
from llava_hr.checkpoints.keys import (
    TowerConfig,
    config_to_official,
    config_to_ours,
    is_official,
    renamed,
    to_official,
    to_ours,
    unused_shapes,
)
from llava_hr.checkpoints.release import meta_state
from llava_hr.configuration import LlavaHrConfig
from tenfold import UserError

SIZES = {"7b": ("llava-hr-7b", 781, 32), "x-13b": ("llava-hr-x-13b", 815, 40)}
SHAPES = {name: tuple(value.shape) for name, value in tiny_weights().items()}


@pytest.mark.parametrize("size", SIZES)
def test_the_full_size_model_has_exactly_the_official_weights(size):
    """Fails if one name, one shape or one count differs: none missing, none too many, unused ones told apart."""
    name, towers, layers = SIZES[size]
    report = key_report(size, OFFICIAL_KEYS)
    assert report.wrong == []
    assert report.count == towers + 9 * layers + 3
    assert report.parameters == OFFICIAL_KEYS["parameter_counts"][name]["total"]
    ours = meta_state(LlavaHrConfig.named(size))
    unused = sum(torch.Size(shape).numel() for shape in unused_shapes(LlavaHrConfig.named(size)).values())
    assert sum(tensor.numel() for tensor in ours.values()) + unused == report.parameters


def test_a_full_size_release_fits_into_the_model():
    """Fails if an official name gets no place in the model, or a place is left empty. Buffers may be there or not."""
    size = "7b"
    name, _, layers = SIZES[size]
    official = {key: torch.empty(shape, device="meta") for key, shape in OFFICIAL_KEYS["keys"][name].items()}
    official |= {f"{VIT}embeddings.position_ids": torch.empty(1, 577, device="meta")}
    dims = {**OFFICIAL_KEYS["dims"], **OFFICIAL_KEYS["dims"][size.rpartition("-")[2]]}
    for pattern, shape in OFFICIAL_KEYS["language_model_keys"].items():
        for layer in range(layers if "{i}" in pattern else 1):
            official[pattern.format(i=layer)] = torch.empty([dims[dim] for dim in shape], device="meta")
            official[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.empty(64, device="meta")
    expected = meta_state(LlavaHrConfig.named(size))
    found = to_ours(official)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}


def test_a_report_names_what_differs():
    """Fails if a report overlooks a missing weight, one too many, another shape, or another count."""
    golden = copy.deepcopy(OFFICIAL_KEYS)
    keys = golden["keys"]["llava-hr-7b"]
    del keys["model.mm_projector.0.bias"]
    keys["model.mm_projector.9.bias"] = [4096]
    keys["model.mm_projector.2.bias"] = [5120]
    golden["parameter_counts"]["llava-hr-7b"]["clip"] += 1
    wrong = "\n".join(key_report("llava-hr-7b", golden).wrong)
    assert "model.mm_projector.9.bias is missing" in wrong
    assert "model.mm_projector.0.bias is too many" in wrong
    assert "model.mm_projector.2.bias is (4096,), official (5120,)" in wrong
    assert "clip: 303,507,456 parameters, official 303,507,457" in wrong
    with pytest.raises(UserError, match="no list of weights for 34b"):
        key_report("34b", golden)


def test_names_come_back():
    """Fails if a name is not turned back into itself, or two of them become one."""
    weights = golden_weights()
    ours = to_ours(weights)
    back = to_official(ours)
    assert len(ours) == len(back) and back.keys() == {
        name for name in weights if name not in UNUSED and ".head." not in name
    }
    assert all(back[name] is weights[name] for name in back)
    model = tiny_model()
    assert to_ours(to_official(model.state_dict())).keys() == model.state_dict().keys()


def test_only_the_layer_scale_is_renamed():
    """Fails if `weight` of a ConvNeXt's norm or convolution becomes `gamma`, or an adapter's."""
    names = renamed(OFFICIAL_KEYS["keys"]["llava-hr-7b"], "ours")
    scales = {new for new in names.values() if new.endswith(".gamma")}
    assert len(scales) == 3 + 3 + 27 + 3
    assert names[f"{CONVNEXT}stages.2.blocks.26.weight"] == "model.vision_tower.convnext.stages.2.blocks.26.gamma"
    assert (
        names[f"{CONVNEXT}stages.1.downsample.0.weight"] == "model.vision_tower.convnext.stages.1.downsample.0.weight"
    )


@pytest.mark.parametrize("name", ["model.mm_projector.1.weight", "lm_head", "model.vision_tower.align_stages.1.x", "x"])
def test_a_foreign_name_is_refused_both_ways(name):
    """Fails if it is dropped in silence."""
    for function in (to_ours, to_official):
        with pytest.raises(UserError, match=f"no weight {name}"):
            function({name: torch.zeros(1)})


def test_freeze_vision_decides_about_the_adapters():
    """It is a switch of the architecture (trap 3). Fails if one direction overlooks it."""
    for adapters in (True, False):
        official = config_to_official(LlavaHrConfig.named("7b", 384, adapters))
        assert (official["freeze_vision"], official["input_image_size"]) == (not adapters, 384)
        assert config_to_ours(official).vision_config.adapters == adapters


@pytest.mark.parametrize("size", ["7b", "13b", "x-13b"])
def test_a_released_config_comes_back(size):
    """Fails if a field is lost: sizes, resolution, adapters, the ConvNeXt and its epsilon."""
    config = LlavaHrConfig.named(size)
    official = config_to_official(config)
    assert is_official(official)
    assert {
        name: official[name] for name in ("mm_vision_tower", "freeze_vision", "input_image_size", "torch_dtype")
    } == {
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "freeze_vision": False,
        "input_image_size": 1024,
        "torch_dtype": "bfloat16",
    }
    back = config_to_ours(official)
    # What this package's own default leaves open.
    config.dtype, config.architectures = torch.bfloat16, ["LlavaHrForConditionalGeneration"]
    assert back.to_dict() == config.to_dict()


def test_dimensions_are_read_off_the_weights():
    """Official configs name their encoders and not their sizes. Fails if a dimension comes from a name."""
    config = config_to_ours(CONFIG, SHAPES, tower=TowerConfig(num_attention_heads=2))
    vision, low = config.vision_config, config.vision_config.low_res_config
    assert (vision.high_res_dims, vision.high_res_depths, vision.high_res_eps) == ([4, 6, 8, 12], [1, 1, 2, 1], 1e-6)
    assert (low.hidden_size, low.intermediate_size, low.num_hidden_layers, low.num_attention_heads) == (16, 24, 4, 2)
    assert (low.image_size, low.patch_size, low.hidden_act) == (336, 14, "quick_gelu")
    assert (vision.image_size, vision.adapters, config.image_token_id, config.num_image_tokens) == (384, True, 420, 576)
    assert (config.image_aspect_ratio, config.conversation, config.dtype) == ("pad", "vicuna_v1", torch.float16)


def test_fields_without_effect_have_none():
    """The tower uses all layers whatever mm_vision_select_layer says."""
    changed = CONFIG | {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch", "delay_load": True}
    tower = TowerConfig(num_attention_heads=2)
    assert (
        config_to_ours(changed, SHAPES, tower=tower).to_dict() == config_to_ours(CONFIG, SHAPES, tower=tower).to_dict()
    )


@pytest.mark.parametrize(
    ("slow", "rows", "weights"),
    [
        ("convnext_large_mlp.clip_laion2b_ft_320", 1000, "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320"),
        ("convnext_large_mlp.clip_laion2b_ft_320", 768, "convnext_large_mlp.clip_laion2b_ft_320"),
        ("convnext_large_mlp.clip_laion2b_ft_320", 5, "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320"),
        ("timm/convnext_xxlarge.clip_laion2b_soup", 1000, "convnext_xxlarge.clip_laion2b_soup_ft_in1k"),
        ("timm/convnext_xxlarge.clip_laion2b_soup", 1024, "convnext_xxlarge.clip_laion2b_soup"),
    ],
)
def test_the_head_tells_which_weights_the_training_started_from(slow, rows, weights):
    """Fails if the tag in the config, which the official code ignores, is believed."""
    shapes = SHAPES | {f"{CONVNEXT}head.fc.weight": (rows, 12)}
    config = config_to_ours(CONFIG | {"vision_tower_slow": slow}, shapes, tower=TowerConfig(num_attention_heads=2))
    assert config.vision_config.high_res_weights == weights
    assert config.vision_config.high_res_eps == (1e-5 if "xxlarge" in slow else 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"vision_tower_slow": "eva02_large"}, "high-resolution encoder eva02_large"),
        ({"is_multipath_encoder": False}, "is_multipath_encoder"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ({"input_image_size": None}, "input_image_size"),
        ({"input_image_size": 500}, "image_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 25}, "unusable"),
    ],
)
def test_another_model_is_refused_by_its_field(change, message):
    """Fails if a config that this model cannot be is taken, or the message does not name the field."""
    with pytest.raises(UserError, match=message):
        config_to_ours(CONFIG | change, SHAPES, tower=TowerConfig(num_attention_heads=2))


def test_a_tower_whose_heads_are_unknown_is_refused():
    with pytest.raises(UserError, match=r"a ViT of width 16.*num_attention_heads in vision_tower/config.json"):
        config_to_ours(CONFIG, SHAPES)


@pytest.mark.parametrize("name", ["min_low_size", "high_res_stride", "num_groups", "high_res_eps"])
def test_what_the_official_code_cannot_be_told_is_refused(name):
    """These are constants there. Fails if a model with others is written as if the official code could run it."""
    config = LlavaHrConfig.named("7b")
    setattr(config.vision_config, name, 7)
    with pytest.raises(UserError, match=f"{name} is 7"):
        config_to_official(config)
    with pytest.raises(UserError, match="min_low_size is 28"):
        config_to_official(tiny_config())


def test_configs_are_json():
    assert json.loads(json.dumps(config_to_official(LlavaHrConfig.named("x-13b"))))["vision_tower_slow"].startswith(
        "convnext_xx"
    )
