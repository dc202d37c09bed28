"""Official checkpoints: names, shapes, safe reading, and the way back."""

import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dtnet_models import GOLDENS, golden, tiny_config, tiny_features, tiny_model, tiny_tokens
from safetensors.torch import load_file, save_file

from dtnet.checkpoints.keys import (
    convert,
    export_state,
    from_official,
    import_state,
    infer_config,
    read_official,
    to_official,
)
from dtnet.config import DTNetConfig
from dtnet.model import DTNet
from dtnet.vocabulary import Vocabulary
from tenfold import UserError
from tenfold.weights import read_weights


def training_state(model: DTNet) -> dict:
    """What the official training writes after an epoch."""
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5)
    model(tiny_features(model), tiny_tokens(model)).sum().backward()
    adam.step()
    return {
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.RandomState(0).get_state(),
        "random_rng_state": random.Random(0).getstate(),
        "epoch": 3,
        "val_loss": 2.5,
        "val_cider": np.float64(1.13),
        "state_dict": export_state(model.state_dict()),
        "optimizer": adam.state_dict(),
        "scheduler": scheduler.state_dict(),
        "patience": 0,
        "best_cider": np.float64(1.14),
        "use_rl": False,
    }


def test_keys_and_shapes_at_full_size_are_the_official_ones():
    """All 439 of them. Fails if one is renamed, missing, or of another shape."""
    facts = json.loads((GOLDENS / "official_keys.json").read_text())
    with torch.device("meta"):
        model = DTNet(DTNetConfig())
    official = export_state(model.state_dict())
    assert len(official) == 439
    assert {name: list(tensor.shape) for name, tensor in official.items()} == facts["keys"]
    assert sum(p.numel() for p in model.parameters()) == facts["parameters_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts["parameters_trainable"]
    assert sum(p.numel() for p in model.encoder.parameters()) == facts["parameters_encoder"]
    assert sum(p.numel() for p in model.decoder.parameters()) == facts["parameters_decoder"]
    state = {name: torch.empty(shape, device="meta") for name, shape in facts["keys"].items()}
    ours = import_state(state, "official_keys.json")
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert infer_config(ours, "official_keys.json") == DTNetConfig()


def test_the_key_map_is_exactly_invertible():
    names = list(tiny_model().state_dict())
    assert [from_official(to_official(name)) for name in names] == names
    assert len({to_official(name) for name in names}) == len(names)
    for unknown in (
        "encoder.layers.0.mhatt.attention.fc_qq.weight",
        "encoder.layers.x.lnorm.bias",
        "encoder.WG.0.bias",
    ):
        with pytest.raises(KeyError):
            from_official(unknown)


@pytest.mark.parametrize("numpy", ["numpy._core", "numpy.core"])
def test_a_training_checkpoint_is_read_without_running_it(tmp_path, numpy):
    """Random states and scores are NumPy's, of NumPy 1 or 2. Fails if the allow-list forgets one of their names."""
    model = tiny_model()
    before = export_state({name: tensor.clone() for name, tensor in model.state_dict().items()})
    state = {**training_state(model), "state_dict": before}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = tmp_path / "dtnet_best.pth"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core" in data
                data = data.replace(b"numpy._core", numpy.encode())
            target.writestr(name, data)
    content = read_weights(path)
    assert set(content) == set(state)
    assert content["val_cider"] == 1.13 and content["random_rng_state"] == random.Random(0).getstate()
    assert np.array_equal(content["numpy_rng_state"][1], state["numpy_rng_state"][1])
    read = read_official(path, tiny_config())
    assert not read.training
    assert all(torch.equal(tensor, before[to_official(name)]) for name, tensor in read.state_dict().items())


def test_conversion_there_and_back_keeps_every_bit(tmp_path):
    """A golden model, through a .pth, a folder, a .pth and a .safetensors."""
    model, tensors, facts = golden("model_xe")
    official = {key.removeprefix("weights/"): tensor for key, tensor in tensors.items() if key.startswith("weights/")}
    torch.save({"state_dict": official, "epoch": 1}, tmp_path / "official.pth")
    vocabulary = Vocabulary(["<unk>", "<pad>", "<bos>", "<eos>", *(f"w{number}" for number in range(33))])
    vocabulary.save(tmp_path / "words.json")
    folder = convert(tmp_path / "official.pth", tmp_path / "folder", vocabulary=tmp_path / "words.json")
    ours = DTNet.from_pretrained(folder)
    assert ours.config == model.config and ours.config.d_model == facts["config"]["d_model"]
    assert ours.vocabulary == vocabulary
    assert torch.equal(ours.encode(tensors["in/images"]).memory, model.encode(tensors["in/images"]).memory)
    for name in ("back.pth", "back.safetensors"):
        convert(folder, tmp_path / name, to="official")
        back = read_weights(tmp_path / name)
        back = back.get("state_dict", back)
        # The golden weights lack some of the official decoder's own buffers.
        assert all(".running_" in key for key in set(back) - set(official))
        for key, tensor in official.items():
            assert torch.equal(back[key], tensor) and back[key].dtype == tensor.dtype, key
        again = convert(tmp_path / name, tmp_path / f"again-{name}")
        assert DTNet.from_pretrained(again).config == model.config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grid": 5, "router_reductions": (5, 3), "se_reduction": 3, "d_model": 30},
        {"heads": 4, "d_k": 4, "d_v": 6, "encoder_layers": 1, "decoder_layers": 3},
        {"max_len": 30, "vocabulary_size": 9, "d_ff": 7, "d_in": 2},
    ],
)
def test_shapes_say_the_dimensions(changes):
    """A reduction that leads to the same width counts as the same."""
    config = tiny_config(**changes)
    state = DTNet(config).state_dict()
    found = infer_config(state, "state")
    assert {n: t.shape for n, t in DTNet(found).state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert found.to_json() | {"router_reductions": 0, "se_reduction": 0} == config.to_json() | {
        "router_reductions": 0,
        "se_reduction": 0,
    }


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_file_that_is_no_checkpoint_is_named_and_leaves_nothing(tmp_path):
    """Each is one line. Fails if a pickle may run code, or half a folder stays."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    state = export_state(tiny_model().state_dict())
    good = inputs / "good.pth"
    torch.save({"state_dict": state}, good)
    data = good.read_bytes()
    touched = tmp_path / "touched"

    def written(name: str, content: object) -> Path:
        torch.save(content, inputs / name)
        return inputs / name

    def raw(name: str, content: bytes) -> Path:
        (inputs / name).write_bytes(content)
        return inputs / name

    without = {key: tensor for key, tensor in state.items() if key != "encoder.fc.bias"}
    no_matrix = {**state, "encoder.fc.weight": torch.zeros(3)}
    for path, message in (
        (inputs / "none.pth", "no such file"),
        (raw("cut.pth", data[: len(data) // 2]), "broken, truncated or no plain weights"),
        (raw("empty.pth", b""), "broken, truncated or no plain weights"),
        (raw("text.pth", b"hello"), "broken, truncated or no plain weights"),
        (raw("evil.pth", pickle.dumps(_Evil(touched), protocol=2)), "broken, truncated or no plain weights"),
        (written("evil2.pth", {"state_dict": state, "x": _Evil(touched)}), "broken, truncated or no plain weights"),
        (written("list.pth", [1, 2]), "list instead of a dict"),
        (written("numbers.pth", {"state_dict": {"encoder.fc.weight": 3}}), "is no tensor"),
        (written("nothing.pth", {}), "no weight encoder.fc.weight"),
        (written("other.pth", {"features.0.weight": torch.zeros(2, 2)}), "no DTNet weight: features.0.weight"),
        (written("without.pth", without), "1 weights missing, such as encoder.fc.bias"),
        (written("shape.pth", {**state, "decoder.fc.weight": torch.zeros(2, 2)}), "decoder.fc.weight"),
        (written("vector.pth", no_matrix), "another shape than a DTNet's"),
        (raw("cut.safetensors", b"\x10\0\0\0\0\0\0\0{"), "broken or truncated"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            convert(path, tmp_path / "folder")
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not touched.exists()
    with pytest.raises(UserError, match="no such file"):
        convert(good, tmp_path / "folder", vocabulary=tmp_path / "none.pkl")
    Vocabulary(["<unk>", "<pad>", "<bos>", "<eos>"]).save(inputs / "words.json")
    with pytest.raises(UserError, match="a vocabulary of 4 words"):
        convert(good, tmp_path / "folder", vocabulary=inputs / "words.json")
    with pytest.raises(UserError, match="format 'keras'"):
        convert(good, tmp_path / "folder", to="keras")
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


def test_what_the_official_code_cannot_hold_is_refused(tmp_path):
    tiny_model(cells=("gmc", "cpc")).save_pretrained(tmp_path / "static")
    tiny_model().save_pretrained(tmp_path / "folder")
    with pytest.raises(UserError, match="a variant of the model"):
        convert(tmp_path / "static", tmp_path / "static.pth", to="official")
    with pytest.raises(UserError, match="unknown kind of file"):
        convert(tmp_path / "folder", tmp_path / "out.bin", to="official")
    with pytest.raises(UserError, match="already exists"):
        convert(tmp_path / "folder", tmp_path / "static", to="official")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "static"]


def test_safetensors_with_official_names_are_read(tmp_path):
    model = tiny_model()
    save_file(export_state(model.state_dict()), tmp_path / "official.safetensors")
    assert len(load_file(tmp_path / "official.safetensors")) == len(model.state_dict()) + 2 + 2 * 2
    read = read_official(tmp_path / "official.safetensors", tiny_config())
    features, tokens = tiny_features(model), tiny_tokens(model)
    assert torch.equal(read(features, tokens), model(features, tokens))
