"""D3: releases to a host plus router and back, bit for bit; saving, loading, refusing what is broken."""

import json
import shutil

import pytest
import torch
from gamma_mod_fixtures import converted, generate, prompts
from gamma_mod_releases import CONFIG, CONVERTED, LAYERS, WIDTH, weights, write_release
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

import gamma_mod
from gamma_mod.checkpoints.convert import convert_back, convert_release
from gamma_mod.config import GammaModConfig
from gamma_mod.storage import read_beside, write_beside
from tenfold import UserError
from tenfold.testing.hosts import build
from tenfold.weights import WeightFiles


def stored(folder):
    with WeightFiles(folder) as files:
        return {name: tensor.read().clone() for name, tensor in files.tensors.items()}


@pytest.mark.parametrize(("routers", "suffix"), [(CONVERTED, ".bin"), (CONVERTED[:1], ".safetensors")])
def test_a_release_becomes_a_host_and_a_router_and_a_release_again(tmp_path, routers, suffix):
    """Fails if a weight is lost or changed, the router stays with the host, or the config keeps its `mod`."""
    source = write_release(tmp_path / "release", routers, suffix=suffix)
    made = convert_release(source, tmp_path / "host", routing_ratio=0.34, shard_bytes=2000)
    config, router, num_layers = read_beside(made.output)
    original = weights(routers)
    assert torch.equal(router, original["model.layers.1.router.weight"]) and num_layers == LAYERS
    assert (config.layers, config.protect, config.routing_ratio) == (CONVERTED, "question+answer", 0.34)
    host = stored(made.output)
    expected = {name: tensor for name, tensor in original.items() if "router" not in name and "inv_freq" not in name}
    assert host.keys() == expected.keys() and all(torch.equal(host[name], expected[name]) for name in host)
    settings = json.loads((made.output / "config.json").read_text())
    assert settings["model_type"] == "llava" and "mod" not in settings
    assert settings["architectures"] == ["LlavaLlamaForCausalLM"]
    assert (made.output / "tokenizer.model").read_bytes() == b"tokens"
    assert made.parameters == sum(tensor.numel() for tensor in expected.values()) + 2 * WIDTH

    back = convert_back(made.output, tmp_path / "back")
    again = stored(back.output)
    full = {name: tensor for name, tensor in weights().items() if "inv_freq" not in name}
    assert again.keys() == full.keys() and all(torch.equal(again[name], full[name]) for name in full)
    assert json.loads((back.output / "config.json").read_text()) == CONFIG


def test_a_folders_name_says_nothing(tmp_path):
    """The authors' loader takes every folder with "mod" in its name for a converted model. Fails if ours does."""
    source = write_release(tmp_path / "some-model", config=CONFIG | {"model_type": "llava"})
    with pytest.raises(UserError, match="not a gamma-MoD release"):
        convert_release(source, tmp_path / "out")
    plain = write_release(tmp_path / "release")
    assert convert_release(plain, tmp_path / "host").layers == CONVERTED


MOD = CONFIG["mod"]
BROKEN = {
    "no mod": ({"mod": None}, "not a gamma-MoD release"),
    "layers beyond the model": ({"mod": MOD | {"mod_layers_idx": [1, 9]}}, "mod_layers_idx"),
    "layers that are no list": ({"mod": MOD | {"mod_layers_idx": "all"}}, "mod_layers_idx"),
    "no width": ({"hidden_size": "16"}, "hidden_size '16'"),
    "another width": ({"hidden_size": 8}, r"router of shape \[2, 16\]"),
    "other layers": ({"mod": MOD | {"mod_layers_idx": [0, 1, 2]}}, "layer 3 is not converted"),
    "a coefficient that is none": ({"mod": MOD | {"router_aux_loss_coef": "x"}}, "router_aux_loss_coef"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_refused_in_one_line(tmp_path, name):
    change, message = BROKEN[name]
    source = write_release(tmp_path / "release", config=CONFIG | change)
    with pytest.raises(UserError, match=message):
        convert_release(source, tmp_path / "host")
    assert not (tmp_path / "host").exists()


def test_broken_weights_are_refused_in_one_line(tmp_path):
    """A truncated shard, a missing shard, no router, another router, one that is not finite."""
    source = write_release(tmp_path / "release")
    shard = sorted(source.glob("*.bin"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"broken|truncated"):
        convert_release(source, tmp_path / "host")
    shard.unlink()
    with pytest.raises(UserError, match="1 of 2 shards missing"):
        convert_release(source, tmp_path / "host")
    for name, change, message in [
        ("none", {layer: None for layer in CONVERTED}, "no router"),
        ("other", {2: 1.0}, "routers that differ"),
        ("nan", {layer: float("nan") for layer in CONVERTED}, "not finite|differ"),
    ]:
        tensors = weights()
        for layer, value in change.items():
            key = f"model.layers.{layer}.router.weight"
            tensors.pop(key) if value is None else tensors[key].fill_(value)
        with pytest.raises(UserError, match=message):
            convert_release(write_release(tmp_path / name, tensors=tensors), tmp_path / "host")
    assert not (tmp_path / "host").exists()


def test_an_existing_folder_is_left_alone(tmp_path):
    source = write_release(tmp_path / "release")
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "mine").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        convert_release(source, tmp_path / "host")
    assert (tmp_path / "host" / "mine").read_text() == "x"


def test_save_pretrained_writes_the_conversion_beside_the_host(tmp_path):
    """The host's own files load in plain transformers, and `restore` makes the same converted model of them. Fails if
    knobs or router are lost."""
    model, inputs = converted(prefill_threshold=0.4, decode_threshold=0.6, protect="none"), prompts()
    expected = generate(model, inputs)
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "layers 1, 2" in card and "base_model" not in card
    host = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert not hasattr(host, "gamma_mod")
    gamma_mod.restore(host.eval(), tmp_path / "model")
    assert host.gamma_mod.config == model.gamma_mod.config
    assert torch.equal(host.gamma_mod.router.weight, model.gamma_mod.router.weight)
    assert torch.equal(generate(host, inputs), expected)


def test_separate_routers_are_stored_too(tmp_path):
    model = converted(shared_router=False)
    model.save_pretrained(tmp_path / "model")
    config, router, _ = read_beside(tmp_path / "model")
    assert not config.shared_router and torch.equal(router, model.gamma_mod.router.weight)


def test_a_conversion_of_another_host_is_refused(tmp_path):
    for layers, width, message in [(6, 32, "conversion of 6 layers"), (4, 48, "router of width 48")]:
        folder = tmp_path / f"{layers}-{width}"
        write_beside(folder, GammaModConfig((1,)), torch.zeros(2, width), layers)
        with pytest.raises(UserError, match=message):
            gamma_mod.restore(build("llava"), folder)


ALTERED = {
    "no json": (lambda folder: (folder / "gamma_mod.json").unlink(), "gamma_mod.json"),
    "broken json": (lambda folder: (folder / "gamma_mod.json").write_text("{"), "gamma_mod.json"),
    "another format": (lambda folder: (folder / "gamma_mod.json").write_text("{}"), "no gamma-MoD conversion"),
    "unknown knob": (lambda folder: edit(folder, knob=1), "knob"),
    "a knob of another type": (lambda folder: edit(folder, routing_ratio="half"), "routing_ratio"),
    "a knob out of range": (lambda folder: edit(folder, routing_ratio=1.0), "routing_ratio 1.0"),
    "layers out of order": (lambda folder: edit(folder, layers=[2, 1]), r"layers \[2, 1\]"),
    "a layer too deep": (lambda folder: edit(folder, layers=[4]), "layer 4"),
    "no weights": (lambda folder: (folder / "gamma_mod.safetensors").unlink(), "gamma_mod.safetensors"),
    "truncated weights": (lambda folder: cut(folder), "gamma_mod.safetensors"),
    "another name": (lambda folder: save(folder, {"weight": torch.zeros(2, 32)}), r"weight \[2, 32\]"),
    "another shape": (lambda folder: save(folder, {"router.weight": torch.zeros(3, 32)}), r"\[3, 32\]"),
    "not finite": (lambda folder: save(folder, {"router.weight": torch.full((2, 32), torch.inf)}), "not finite"),
    "integers": (lambda folder: save(folder, {"router.weight": torch.ones(2, 32, dtype=torch.int)}), "router.weight"),
}


def edit(folder, **knobs):
    content = json.loads((folder / "gamma_mod.json").read_text())
    content["config"] |= knobs
    (folder / "gamma_mod.json").write_text(json.dumps(content))


def cut(folder):
    path = folder / "gamma_mod.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def save(folder, tensors):
    save_file(tensors, folder / "gamma_mod.safetensors")


@pytest.mark.parametrize("name", ALTERED)
def test_broken_files_of_this_package_are_refused_in_one_line(tmp_path, name):
    alter, message = ALTERED[name]
    write_beside(tmp_path, GammaModConfig((1, 2)), torch.zeros(2, 32), 4)
    alter(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        gamma_mod.restore(build("llava"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_saved_model_loads_by_its_folder(tmp_path, caplog):
    """`load` opens host, processor and conversion; fails if the conversion beside the weights is not seen.

    Fails also if the router, which stands among the host's weights too, is said to have no place.
    """
    from tenfold.data import mini_host

    host, processor = mini_host.load()
    gamma_mod.convert(host, (1, 2), prefill_threshold=0.45)
    host.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    model, again = gamma_mod.load(tmp_path / "model", device="cpu")
    assert model.gamma_mod.config.prefill_threshold == 0.45 and again.tokenizer.pad_token == "<pad>"
    weights = load_file(tmp_path / "model" / "gamma_mod.safetensors")["router.weight"]
    assert torch.equal(model.gamma_mod.router.weight, weights)
    assert "no place" not in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing", "no such model"),
        (lambda path: write_release(path / "release"), "official layout"),
        (lambda path: (path / "empty").mkdir() or path / "empty", "no config.json"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        gamma_mod.load(make(tmp_path), device="cpu")


def test_a_truncated_host_is_refused(tmp_path):
    from tenfold.data import mini_host

    shutil.copytree(mini_host.path(), tmp_path / "host")
    file = tmp_path / "host" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError):
        gamma_mod.load(tmp_path / "host", device="cpu")
