"""Official pickles, conversion, and weights to start from. The pickle is built as the official code would write it."""

import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from e3_facenet_fixtures import TINY, TINY_D, make_generator

from e3_facenet.checkpoints.convert import convert, convert_back
from e3_facenet.checkpoints.keys import to_official
from e3_facenet.checkpoints.load import load_official, start_weights
from e3_facenet.checkpoints.release import read_release
from e3_facenet.discriminator import Discriminator
from e3_facenet.facenet import E3FaceNet
from e3_facenet.generator import Generator
from tenfold import UserError


def official_pickle(path, networks, source="", extra=None):
    """Write networks (official names) as the official persistence does; its modules are gone again afterwards."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the official code is not here")

    class EasyDict(dict):
        pass

    class Stored:
        def __init__(self, state):
            self.state = state

        def __reduce__(self):
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Network", "state": self.state}
            return _reconstruct_persistent_obj, (meta,)

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict

    def stored(state):
        children, own = {}, {}
        for name, tensor in state.items():
            head, _, rest = name.partition(".")
            (children.setdefault(head, {}) if rest else own)[rest or head] = tensor
        buffers = ("alpha", "w_avg", "resample_filter", "hidden")
        values = {
            "_parameters": OrderedDict((n, torch.nn.Parameter(t)) for n, t in own.items() if n not in buffers),
            "_buffers": OrderedDict((n, t) for n, t in own.items() if n in buffers),
            "_modules": OrderedDict((n, stored(one)) for n, one in children.items()),
            "_non_persistent_buffers_set": {"hidden"}, "training": True, "_init_kwargs": {"scale": np.float64(1.5)},
        }  # fmt: skip
        return Stored(values)

    modules = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence,
               "dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}  # fmt: skip
    sys.modules.update(modules)
    try:
        content = {name: stored(state) for name, state in networks.items()}
        content |= {"training_set_kwargs": EasyDict(path="x"), "augment_pipe": None} | (extra or {})
        path.write_bytes(pickle.dumps(content))
    finally:
        for name in modules:
            del sys.modules[name]
    return path


@pytest.fixture
def states():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        discriminator = Discriminator(TINY_D)
    generator = to_official(make_generator(1).state_dict(), "generator")
    return {"G_ema": generator, "D": to_official(discriminator.state_dict(), "discriminator")}


def test_a_pickle_gives_its_tensors_and_runs_nothing(tmp_path, states):
    """Fails if the stored source is executed, a tensor changes, or a buffer that is not persistent is taken."""
    marker = tmp_path / "ran"
    hidden = {"G_ema": states["G_ema"] | {"mapping.hidden": torch.ones(3)}, "D": states["D"]}
    path = official_pickle(tmp_path / "net.pkl", hidden, source=f"open({str(marker)!r}, 'w').write('ran')")
    release = read_release(path)
    assert not marker.exists() and "torch_utils" not in sys.modules
    assert release.generator.keys() == states["G_ema"].keys()
    assert all(torch.equal(release.generator[name], tensor) for name, tensor in states["G_ema"].items())
    assert release.discriminator is not None
    assert all(torch.equal(release.discriminator[name], tensor) for name, tensor in states["D"].items())


def test_a_pickle_that_calls_something_is_inert(tmp_path):
    """Fails if a global that is not on the list is imported."""

    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"G": Evil()}))
    with pytest.raises(UserError, match="no networks in it"):
        read_release(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


def test_conversion_goes_both_ways(tmp_path, states, clip_folder):
    """Fails if a tensor is lost or changed between the release, our folder and official names again."""
    source = official_pickle(tmp_path / "net.pkl", states)
    convert(source, tmp_path / "ours", clip=str(clip_folder), heads=TINY.heads)
    back = convert_back(tmp_path / "ours", tmp_path / "back")
    release = read_release(back)
    assert all(torch.equal(release.generator[name], tensor) for name, tensor in states["G_ema"].items())
    assert release.discriminator is not None
    assert all(torch.equal(release.discriminator[name], tensor) for name, tensor in states["D"].items())
    opened = E3FaceNet.from_pretrained(tmp_path / "ours")
    assert opened.config.heads == TINY.heads and opened.config.channels(32) == TINY.channels(32)


def test_dimensions_are_read_from_the_weights(tmp_path, states):
    """Fails if one is guessed: all but what no weight tells (samples of a ray)."""
    generator, discriminator = load_official(official_pickle(tmp_path / "net.pkl", states), heads=TINY.heads)
    untold = ("ray_samples", "bg_samples", "path_rays")
    assert {k: v for k, v in generator.config.to_json().items() if k not in untold} == {
        k: v for k, v in TINY.to_json().items() if k not in untold
    }
    assert discriminator is not None and discriminator.config.cmap_dim == TINY_D.cmap_dim


def test_a_training_starts_from_stylenerf_and_names_what_is_new(tmp_path, states):
    """Fails if a shared name is not copied, or enhancers and text layers are not told as new."""
    stylenerf = {name: tensor for name, tensor in states["G_ema"].items()
                 if "_attn" not in name and "_offset" not in name and "embed" not in name}  # fmt: skip
    stylenerf["synthesis.extra.weight"] = torch.ones(2)
    path = official_pickle(tmp_path / "ffhq.pkl", {"G_ema": stylenerf})
    generator, discriminator = Generator(TINY), Discriminator(TINY_D)
    started = start_weights(path, generator, discriminator)
    assert torch.equal(generator.state_dict()["mapping.layers.0.weight"], states["G_ema"]["mapping.fc0.weight"])
    new = {name for name in started.new if name.startswith("generator.")}
    assert new and all("enhancers" in name or "embed" in name for name in new)


def test_a_start_of_another_shape_is_refused_with_both_shapes(tmp_path, states):
    """Fails if a mismatch is passed over."""
    wrong = states["G_ema"] | {"mapping.fc0.weight": torch.zeros(24, 99)}
    path = official_pickle(tmp_path / "ffhq.pkl", {"G_ema": wrong})
    with pytest.raises(UserError, match=r"mapping.layers.0.weight is \[24, 99\].*\[24, 16\]"):
        start_weights(path, Generator(TINY), Discriminator(TINY_D))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer, not the weights"),
        (b"<!DOCTYPE html><html>Too many requests</html>", "a web page, not the weights"),
        (b"", "not a readable pickle"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "not a readable pickle"),
        (pickle.dumps([1, 2]), "no networks in it"),
        (pickle.dumps({"G": 1}), "no networks in it"),
    ],
)
def test_what_is_no_release_is_named(tmp_path, content, words):
    (tmp_path / "net.pkl").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_release(tmp_path / "net.pkl")


def test_broken_bytes_never_escape(tmp_path, states):
    """Seeded mutations of a pickle: a UserError or tensors, nothing else."""
    good = official_pickle(tmp_path / "net.pkl", states).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(40):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 8))):
            data[int(rng.integers(0, min(len(data), 20_000)))] = int(rng.integers(256))
        if number % 4 == 0:
            data = data[: int(rng.integers(len(data)))]
        path = tmp_path / "mutated.pkl"
        path.write_bytes(bytes(data))
        try:
            release = read_release(path)
        except UserError:
            continue
        assert all(bool(tensor.isfinite().all()) for tensor in release.generator.values())


def test_a_number_that_is_none_is_refused(tmp_path, states):
    states["G_ema"]["mapping.fc0.bias"] = torch.full((24,), torch.nan)
    with pytest.raises(UserError, match=r"mapping.fc0.bias is not finite"):
        read_release(official_pickle(tmp_path / "net.pkl", states))
