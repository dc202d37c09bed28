"""What a training starts from: language model, CLIP, ConvNeXt and stage-1 weights, each from its own layout."""

from contextlib import ExitStack

import pytest
import timm
import torch
from llava_hr_fixtures import tiny_config, tiny_model
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, LlamaForCausalLM

from llava_hr.checkpoints import pretrained
from llava_hr.checkpoints import projector as stage1
from llava_hr.checkpoints.pretrained import CONVNEXT_TAGS, initial, read_convnext
from tenfold import UserError
from tenfold.weights import StoredTensor

TAG = "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320"


def trunk(state):
    return {name: value for name, value in state.items() if name.startswith(("stem.", "stages."))}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders and files as their publishers lay them out, made by their libraries."""
    folder, config = tmp_path_factory.mktemp("parts"), tiny_config()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        language = LlamaForCausalLM(config.text_config)
        clip = CLIPModel(
            CLIPConfig(
                vision_config=config.vision_config.low_res_config.to_dict(),
                text_config={
                    "hidden_size": 8,
                    "intermediate_size": 8,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                },
                projection_dim=8,
            )
        )
        dims, depths = config.vision_config.high_res_dims, config.vision_config.high_res_depths
        convnext = timm.models.convnext.ConvNeXt(num_classes=7, depths=depths, dims=dims, head_hidden_size=12)
        with torch.no_grad():
            for parameter in convnext.parameters():
                parameter.normal_()
    language.save_pretrained(folder / "vicuna")
    # As openai/clip-vit-large-patch14-336 has it: one pickle, `vision_model.` and buffers.
    old = {
        f"vision_model.{name.removeprefix('vision_model.')}": value
        for name, value in clip.vision_model.state_dict().items()
    }
    old |= {"vision_model.embeddings.position_ids": torch.arange(10)[None], "logit_scale": torch.ones(())}
    old |= {"text_model.final_layer_norm.weight": torch.ones(8), "visual_projection.weight": torch.ones(8, 16)}
    (folder / "clip").mkdir()
    torch.save(old, folder / "clip" / "pytorch_model.bin")
    state = convnext.state_dict()
    save_file(state, folder / "timm.safetensors")
    open_clip = {f"visual.trunk.{name}": value for name, value in trunk(state).items()}
    open_clip |= {
        "visual.head.mlp.fc1.weight": torch.ones(4, 12),
        "logit_scale": torch.ones(()),
        "text.w": torch.ones(2),
    }
    torch.save(open_clip, folder / "open_clip_pytorch_model.bin")
    renamed = {name.replace(".gamma", ".weight"): value for name, value in state.items()}
    torch.save(renamed, folder / "renamed.bin")
    projector = {name: value for name, value in tiny_model(seed=3).state_dict().items() if name in stage1.NAMES}
    stage1.write(folder / "mm_projector.bin", projector)
    expected = {f"model.language_model.{name}": value for name, value in language.model.state_dict().items()}
    expected |= {"lm_head.weight": language.lm_head.weight.detach()}
    expected |= {f"model.vision_tower.convnext.{name}": value for name, value in trunk(state).items()}
    expected |= {
        f"model.vision_tower.vit.{name.removeprefix('vision_model.')}": value
        for name, value in old.items()
        if name.startswith("vision_model.") and "post_layernorm" not in name and "position_ids" not in name
    }
    return folder, expected, projector


def start(folder, files, **changes):
    given = {"language_model": folder / "vicuna", "clip": folder / "clip", "convnext": folder / "timm.safetensors"}
    return initial(changes.pop("config", None) or tiny_config(), files, **given | changes)


@pytest.mark.parametrize("convnext", ["timm.safetensors", "open_clip_pytorch_model.bin", "renamed.bin"])
def test_every_weight_is_found_in_every_layout(parts, convnext):
    """Fails if a name is lost, a layer scale is not found, or text halves and heads come along."""
    folder, expected, projector = parts
    with ExitStack() as files:
        weights = start(folder, files, convnext=folder / convnext, projector=folder / "mm_projector.bin")
        assert weights.keys() == expected.keys() | projector.keys()
        assert all(torch.equal(weights[name].read(), value) for name, value in (expected | projector).items())
    new = tiny_model().state_dict().keys() - weights.keys()
    assert new and all(name.startswith("model.vision_tower.adapters.") for name in new)


def test_without_stage_1_its_weights_are_left_to_the_model(parts):
    folder, expected, _ = parts
    with ExitStack() as files:
        assert start(folder, files, config=tiny_config(adapters=False)).keys() == expected.keys()


def test_an_image_half_of_its_own(parts, tmp_path):
    """A CLIPVisionModel that transformers saved. Fails if only whole CLIPs are read."""
    folder, expected, _ = parts
    prefix = "model.vision_tower.vit."
    vision = {name.removeprefix(prefix): value for name, value in expected.items() if name.startswith(prefix)}
    (tmp_path / "vision").mkdir()
    save_file({k: v.contiguous() for k, v in vision.items()}, tmp_path / "vision" / "model.safetensors")
    with ExitStack() as files:
        weights = start(folder, files, clip=tmp_path / "vision")
        assert all(torch.equal(weights[name].read(), expected[name]) for name in expected if name.startswith(prefix))


def test_tied_embeddings_give_the_head(parts, tmp_path):
    """Small language models leave lm_head out. Fails if it is reported missing, or left random."""
    folder, expected, _ = parts
    prefix = "model.language_model."
    tied = {f"model.{n.removeprefix(prefix)}": v for n, v in expected.items() if n.startswith(prefix)}
    (tmp_path / "small").mkdir()
    save_file(tied, tmp_path / "small" / "model.safetensors")
    config = tiny_config()
    with ExitStack() as files, pytest.raises(UserError, match=r"no lm_head.weight: .*small"):
        start(folder, files, language_model=tmp_path / "small")
    config.text_config.tie_word_embeddings = True
    with ExitStack() as files:
        weights = start(folder, files, config=config, language_model=tmp_path / "small")
        assert torch.equal(weights["lm_head.weight"].read(), expected["model.language_model.embed_tokens.weight"])


def stored(**shapes):
    return {name.replace("__", "."): StoredTensor(shape, torch.float32, lambda: None) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("channels", "head", "tag"),
    [
        (1536, {"head__fc__weight": (1000, 1536)}, TAG),
        (1536, {"head__fc__weight": (768, 1536)}, "convnext_large_mlp.clip_laion2b_ft_320"),
        (3072, {"head__fc__weight": (1000, 3072)}, "convnext_xxlarge.clip_laion2b_soup_ft_in1k"),
        (3072, {"head__fc__weight": (1024, 3072)}, "convnext_xxlarge.clip_laion2b_soup"),
        (1536, {"head__fc__weight": (21841, 1536)}, None),
        (1536, {}, None),
        (12, {"head__fc__weight": (1000, 12)}, None),
    ],
)
def test_the_head_tells_the_tag(channels, head, tag):
    """Fails if the two candidates of section 4.3 are mixed up, or another trunk is taken for one of them."""
    inner = stored(stages__3__downsample__1__weight=(channels, channels // 2, 2, 2), **head)
    assert pretrained._tag(inner, open_clip=False) == tag


@pytest.mark.parametrize(
    ("channels", "tag"),
    [(1536, "convnext_large_mlp.clip_laion2b_ft_320"), (3072, "convnext_xxlarge.clip_laion2b_soup")],
)
def test_open_clip_files_are_the_pure_clip_weights(channels, tag):
    inner = stored(stages__3__downsample__1__weight=(channels, channels // 2, 2, 2))
    assert pretrained._tag(inner, open_clip=True) == tag


def test_a_tag_is_looked_for_on_the_hub(parts, monkeypatch):
    """Fails if the tag in the config is not what is loaded, or another one is written down."""
    folder, _, _ = parts
    asked = []
    monkeypatch.setattr(pretrained, "find_model", lambda name: asked.append(str(name)) or folder / "timm.safetensors")
    with ExitStack() as files:
        assert read_convnext(TAG, files)[1] == TAG
        assert read_convnext("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft", files)[1] is None
    assert asked == [f"timm/{TAG}", "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft"]
    assert sorted(CONVNEXT_TAGS) == [
        "convnext_large_mlp.clip_laion2b_ft_320",
        TAG,
        "convnext_xxlarge.clip_laion2b_soup",
        "convnext_xxlarge.clip_laion2b_soup_ft_in1k",
    ]


def test_what_was_loaded_is_in_the_config(parts, monkeypatch):
    """Fails if the config names the default where other weights were taken."""
    folder, _, _ = parts
    config, other = tiny_config(), "convnext_large_mlp.clip_laion2b_ft_320"
    real = pretrained.find_model
    monkeypatch.setattr(
        pretrained, "find_model", lambda name: folder / "timm.safetensors" if "timm/" in str(name) else real(name)
    )
    with ExitStack() as files:
        start(folder, files, config=config, convnext=None)
        assert config.vision_config.high_res_weights == TAG
        start(folder, files, config=config, convnext=other)
        assert config.vision_config.high_res_weights == other
        with pytest.raises(UserError, match="weights of convnext_xxlarge"):
            start(folder, files, convnext="convnext_xxlarge.clip_laion2b_soup")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_model": "{folder}/clip"}, "no language model: .*clip"),
        ({"clip": "{folder}/vicuna"}, "no CLIP vision tower: .*vicuna"),
        ({"convnext": "{folder}/clip"}, "no ConvNeXt: .*clip"),
        ({"convnext": "convnext_tiny.in12k"}, "no such model: convnext_tiny.in12k"),
        ({"language_model": "{folder}/nowhere"}, "no such model: .*nowhere"),
        ({"projector": "{folder}/timm.safetensors"}, "no model.multi_modal_projector.linear_1.weight"),
        ({"projector": "{folder}/nowhere"}, "no such file or folder: .*nowhere"),
    ],
)
def test_a_part_of_something_else_is_refused(parts, changes, message):
    """Fails if the message does not name the part that is wrong."""
    folder, _, _ = parts
    given = {name: value.format(folder=folder) for name, value in changes.items()}
    with ExitStack() as files, pytest.raises(UserError, match=message):
        start(folder, files, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.text_config, "vocab_size", 61), r"\[60, 24\]: .*vicuna .expected \[61, 24\]"),
        (lambda c: setattr(c.text_config, "num_hidden_layers", 2), "layers.2.* is too many: .*vicuna"),
        (
            lambda c: setattr(c.vision_config, "high_res_depths", [1, 1, 3, 1]),
            "no .*stages.2.blocks.2.* timm.safetensors|no .*",
        ),
        (lambda c: setattr(c.vision_config.low_res_config, "num_hidden_layers", 8), "no .*vit.encoder.layers.4.*clip"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(parts, change, message):
    folder, _, _ = parts
    config = tiny_config()
    change(config)
    with ExitStack() as files, pytest.raises(UserError, match=message):
        start(folder, files, config=config)
