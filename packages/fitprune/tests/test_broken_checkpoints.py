"""What is wrong with a checkpoint is said in one line, and nothing is written."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from fitprune_releases import RELEASE, TOWER, WORDS, tiny_weights, write_release
from safetensors.torch import load_file, save_file

from fitprune.checkpoints.keys import convert, to_official
from tenfold import UserError


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("official") / "llava")


def broken(tmp_path, what):
    """A release with one thing wrong, and what the message must say."""
    weights, config = tiny_weights(), {}
    if what == "missing weight":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif what == "unexpected weight":
        weights["model.layers.3.input_layernorm.weight"] = torch.ones(32)
    elif what == "foreign weight":
        weights["model.image_newline"] = torch.ones(32)
    elif what == "wrong shape":
        weights["model.mm_projector.0.weight"] = torch.ones(32, 8)
    elif what == "integer weights":
        weights["model.norm.weight"] = torch.ones(32, dtype=torch.uint8)
    elif what == "another projector":
        config = {"mm_projector_type": "linear"}
    elif what == "another tower":
        config = {"mm_vision_tower": "google/siglip-so400m-patch14-384"}
    elif what == "tiles":
        config = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}
    release = write_release(tmp_path / "release", weights, config)
    shard = release / "model-00001-of-00002.safetensors"
    index = release / "model.safetensors.index.json"
    if what == "missing shard":
        shard.unlink()
    elif what == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif what == "no safetensors":
        shard.write_bytes(b"\x89PNG....")
    elif what == "broken index":
        index.write_text('{"weight_map": {"a": ')
    elif what == "index without map":
        index.write_text("[]")
    elif what == "index that points outside":
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../secret.safetensors"}}))
    elif what == "index with an endless name":
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": "a" * 300}}))
    elif what == "promised weight":
        content = json.loads(index.read_text())
        content["weight_map"]["model.layers.9.x"] = shard.name
        index.write_text(json.dumps(content))
    elif what == "weight twice":
        save_file(load_file(release / "model-00002-of-00002.safetensors"), shard)
    elif what == "no weights":
        for path in release.glob("model*"):
            path.unlink()
    elif what == "no config":
        (release / "config.json").unlink()
    elif what == "broken config":
        (release / "config.json").write_text("{")
    elif what == "transformers' layout":
        (release / "config.json").write_text('{"model_type": "llava", "text_config": {}}')
    elif what == "broken tokenizer":
        (release / "tokenizer.json").write_text('{"version": ')
    elif what == "broken settings of the tokenizer":
        (release / "tokenizer_config.json").write_text('{"bos_token": ')
    elif what == "nested settings of the tokenizer":
        (release / "tokenizer_config.json").write_text("[" * 3000 + "]" * 3000)
    elif what == "a list for a word":
        (release / "tokenizer_config.json").write_text('{"bos_token": ["<s>"]}')
    elif what == "a post-processor of no kind":
        content = json.loads((release / "tokenizer.json").read_text())
        (release / "tokenizer.json").write_text(json.dumps(content | {"post_processor": 7}))
    elif what == "too many words":
        (release / "config.json").write_text(json.dumps(RELEASE | {"vocab_size": WORDS - 1}))
    return release


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing weight", "1 weights missing, first model.layers.1.mlp.up_proj.weight"),
        ("unexpected weight", "1 weights too many, first model.layers.3.input_layernorm.weight"),
        ("foreign weight", "LLaVA-1.5 has no weight model.image_newline"),
        ("wrong shape", "model.mm_projector.0.weight is [32, 8]"),
        ("integer weights", "is of type U8"),
        ("another projector", "mm_projector_type: Input should be 'mlp2x_gelu'"),
        ("another tower", "vision tower google/siglip-so400m-patch14-384"),
        ("tiles", "image_aspect_ratio"),
        ("missing shard", "1 of 2 shards missing"),
        ("truncated shard", "broken or truncated"),
        ("no safetensors", "broken or truncated"),
        ("broken index", "broken JSON"),
        ("index without map", "no weight_map"),
        ("index that points outside", "lm_head.weight is in '../secret.safetensors'"),
        ("index with an endless name", "the name of a file beside the index"),
        ("promised weight", "no weight model.layers.9.x"),
        ("weight twice", "is in two shards"),
        ("no weights", "no weights"),
        ("no config", "no such file"),
        ("broken config", "broken JSON"),
        ("transformers' layout", "not an official release (model_type 'llava')"),
        ("broken tokenizer", "broken JSON"),
        ("broken settings of the tokenizer", "broken JSON"),
        ("nested settings of the tokenizer", "nested too deeply"),
        ("a list for a word", "cannot be loaded (TypeError"),
        ("a post-processor of no kind", "cannot be loaded (Exception"),
        ("too many words", "70 words"),
    ],
)
def test_a_broken_release_is_refused_in_one_line(tmp_path, what, message):
    """Fails if the message does not say what is wrong, or if anything is left in the output's place."""
    release = broken(tmp_path, what)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert(release, tmp_path / "out", to="hf")
    assert ("\n" not in str(caught.value) and str(release) in str(caught.value)) or what == "foreign weight"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


@pytest.mark.parametrize("content", [b"", b"not a pickle", None], ids=["empty", "text", "truncated"])
def test_a_broken_pickle_is_refused(tmp_path, content):
    release = write_release(tmp_path / "release", pickled=True)
    shard = release / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-200] if content is None else content)
    with pytest.raises(UserError, match="broken, truncated or no plain weights"):
        convert(release, tmp_path / "out", to="hf")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """Fails if weights are unpickled without weights_only: the file would then create the marker."""
    marker = tmp_path / "marker"

    class Runs:
        def __reduce__(self):
            return (Path.touch, (marker,))

    release = write_release(tmp_path / "release", pickled=True)
    torch.save({"lm_head.weight": Runs()}, release / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match="no plain weights"):
        convert(release, tmp_path / "out", to="hf")
    assert not marker.exists()


def test_what_reads_tokenizer_model_is_named_when_it_is_missing(tmp_path, monkeypatch):
    """Fails if a release with nothing but tokenizer.model ends in a traceback where sentencepiece is not installed."""
    release = write_release(tmp_path / "release")
    (release / "tokenizer.json").rename(release / "tokenizer.model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tokenizer\.model \(expected sentencepiece and protobuf: pip install"):
        convert(release, tmp_path / "out", to="hf")


def test_a_release_without_its_tower_says_what_it_needs(tmp_path):
    weights = {name: tensor for name, tensor in tiny_weights().items() if not name.startswith(TOWER)}
    release = write_release(tmp_path / "release", weights)
    with pytest.raises(UserError, match=r"no vision tower inside.*--vision-tower"):
        convert(release, tmp_path / "out", to="hf")


def test_an_existing_output_is_left_alone(release, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="already exists"):
        convert(release, tmp_path / "out", to="hf")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_wrong_direction_is_named(release, tmp_path):
    with pytest.raises(UserError, match="an official release"):
        convert(release, tmp_path / "out", to="official")
    with pytest.raises(UserError, match="cannot convert to 'onnx'"):
        convert(release, tmp_path / "out", to="onnx")


def test_one_weight_under_two_names_is_refused():
    names = {"model.vision_tower.pre_layrnorm.bias": None, "vision_tower.vision_model.pre_layrnorm.bias": None}
    with pytest.raises(UserError, match="are the same weight"):
        to_official(names)


def test_another_model_is_no_llava(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(UserError, match="model_type 'qwen2_vl'"):
        convert(tmp_path, tmp_path / "out", to="official")
