"""Gates on disk, official checkpoints both ways, and broken files, one by one."""

import json
import shutil

import pytest
import torch
from dyvte_releases import tiny_gates, tiny_host
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from dyvte import GateConfig, Gates, load_gates, save_gates
from dyvte.checkpoints import release
from tenfold import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    model = tiny_host(root / "host")
    tiny_gates(root / "gates")
    release.to_official(root / "host", root / "gates", root / "official")
    shutil.copytree(root / "host", root / "clip")
    vision = {
        name.removeprefix("model.vision_tower."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("model.vision_tower.")
    }
    for file in (root / "clip").glob("*.safetensors"):
        file.unlink()
    save_file({f"vision_model.{k}": v for k, v in vision.items()}, root / "clip" / "model.safetensors")
    (root / "clip" / "config.json").write_text(json.dumps(model.config.vision_config.to_dict()))
    return root


def test_gates_come_back_bit_for_bit(tmp_path):
    gates = Gates(GateConfig(3, 8, 4, rank=2)).initialise(1)
    save_gates(gates, tmp_path / "gates", {"base": "a host", "data": "some", "run": "run-1"})
    found = load_gates(tmp_path / "gates")
    assert found.config == gates.config
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in gates.state_dict().items())
    card = (tmp_path / "gates" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0") and "a host" in card and "run-1" in card
    with pytest.raises(UserError, match="exists"):
        save_gates(gates, tmp_path / "gates")


def test_an_official_checkpoint_gives_its_gates_by_their_prefix(folders, tmp_path):
    """Fails if another weight is taken for a gate, or a name or a layer is mixed up."""
    original = load_gates(folders / "gates")
    for source in (folders / "official", next((folders / "official").glob("*.safetensors"))):
        found = load_gates(source)
        assert found.config == original.config
        assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in original.state_dict().items())
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(load_file(next((folders / "official").glob("*.safetensors"))), pickled / "pytorch_model.bin")
    assert torch.equal(load_gates(pickled)[1].w1.weight, original[1].w1.weight)


def test_the_host_comes_back_from_an_official_checkpoint_bit_for_bit(folders, tmp_path):
    """transformers' layout -> official with gates -> transformers' layout."""
    shutil.copytree(folders / "official", tmp_path / "official")
    (tmp_path / "official" / "vision_tower").mkdir()
    shutil.copy(folders / "clip" / "config.json", tmp_path / "official" / "vision_tower")
    config = release.to_host(tmp_path / "official", tmp_path / "host")
    assert config.image_token_index == 62 and config.text_config.vocab_size == 64
    before = LlavaForConditionalGeneration.from_pretrained(folders / "host").state_dict()
    after = LlavaForConditionalGeneration.from_pretrained(tmp_path / "host").state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(
            after[name], tensor, atol=1e-7 if "embed" in name or "lm_head" in name else 0, rtol=0
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"official_vocab_size": 62.5}, "official_vocab_size 62.5"),
        ({"official_vocab_size": 65}, "1 to 64"),
        ({"vision_feature_layer": "aaaa"}, "vision_feature_layer"),
        ({"image_token_index": {"": None}}, "image_token_index"),
    ],
)
def test_a_hosts_config_that_cannot_be_is_one_line(folders, tmp_path, values, message):
    """Fails if what transformers raises, or a size that is no whole number, reaches the user."""
    host = tmp_path / "host"
    shutil.copytree(folders / "host", host)
    content = json.loads((host / "config.json").read_text())
    (host / "config.json").write_text(json.dumps(content | values))
    with pytest.raises(UserError, match=message) as caught:
        release.to_official(host, folders / "gates", tmp_path / "made")
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


def test_a_release_without_its_vision_tower_takes_clips(folders, tmp_path):
    official = tmp_path / "official"
    shutil.copytree(folders / "official", official)
    file = next(official.glob("*.safetensors"))
    weights = {name: tensor for name, tensor in load_file(file).items() if "vision_tower" not in name}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old releases carry it
    save_file(weights, file)
    with pytest.raises(UserError, match="no vision tower inside"):
        release.to_host(official, tmp_path / "a")
    release.to_host(official, tmp_path / "b", vision_tower=folders / "clip")
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "b").config.image_token_index == 62
    assert not (tmp_path / "a").exists()


def _truncated(folder):
    file = folder / "gates.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


def _zeros(folder):
    (folder / "gates.safetensors").write_bytes(bytes(200))


def _missing(folder):
    (folder / "gates.safetensors").unlink()


def _weights(change):
    def spoil(folder):
        weights = load_file(folder / "gates.safetensors")
        change(weights)
        save_file(weights, folder / "gates.safetensors")

    return spoil


def _config(**changes):
    def spoil(folder):
        content = json.loads((folder / "gates.json").read_text())
        content["gates"] |= changes
        (folder / "gates.json").write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_truncated, "broken or truncated"),
        (_zeros, "broken or truncated"),
        (_missing, "no such file"),
        (_weights(lambda w: w.pop("layers.1.w2.weight")), "layers.1.w2.weight"),
        (_weights(lambda w: w.update(more=torch.zeros(1))), "more"),
        (_weights(lambda w: w.update({"layers.0.w1.weight": torch.zeros(8, 31)})), "layers.0.w1.weight"),
        (_weights(lambda w: w["layers.0.w1.weight"].fill_(torch.nan)), "not finite"),
        (_config(layers=3), "layers.2.w1.weight"),
        (_config(width=10**9), "by its config"),
        (_config(hidden=-1), "hidden: -1"),
        (_config(more=1), "unknown setting"),
        (lambda folder: (folder / "gates.json").write_text("{"), "gates.json"),
        (lambda folder: (folder / "gates.json").write_text("[]"), "no dimensions of gates"),
    ],
)
def test_broken_gates_are_one_line(tmp_path, spoil, words):
    tiny_gates(tmp_path / "gates")
    spoil(tmp_path / "gates")
    with pytest.raises(UserError, match=words) as caught:
        load_gates(tmp_path / "gates")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_gates_and_a_folder_of_nothing_are_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="no gates in this checkpoint"):
        load_gates(folders / "host")
    with pytest.raises(UserError, match="no weights"):
        load_gates(tmp_path)
    with pytest.raises(UserError, match="no such gates"):
        load_gates(tmp_path / "nothing")


def test_an_official_checkpoint_with_a_hole_is_one_line(folders, tmp_path):
    shutil.copytree(folders / "official", tmp_path / "official")
    file = next((tmp_path / "official").glob("*.safetensors"))
    weights = load_file(file)
    removed = weights.pop("model.visual_gates_router.0.w2.weight")
    save_file(weights, file)
    with pytest.raises(UserError, match=r"first layers\.0\.w2\.weight"):
        load_gates(tmp_path / "official")
    save_file({**weights, "model.visual_gates_router.0.w3.weight": removed}, file)
    with pytest.raises(UserError, match=r"w3\.weight"):
        load_gates(tmp_path / "official")


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(folders, tmp_path):
    with pytest.raises(UserError, match="no official release"):
        release.to_host(folders / "host", tmp_path / "out")
    with pytest.raises(UserError, match="llava, in transformers' layout"):
        release.to_official(folders / "official", folders / "gates", tmp_path / "out")
    tiny_gates(tmp_path / "other", layers=3)
    with pytest.raises(UserError, match="gates for 3 layers"):
        release.to_official(folders / "host", tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_calls_is_refused(tmp_path):
    """Files from elsewhere are data, never code."""
    import pickle

    class Call:
        def __reduce__(self):
            return (print, ("called",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Call()}))
    with pytest.raises(UserError, match="broken, truncated or no plain weights"):
        load_gates(tmp_path)
