"""`llava-hr convert` on everything that can be wrong with a checkpoint: one line that says it, and no output."""

import json
import os
import shutil

import pytest
import torch
from llava_hr_fixtures import tiny_config
from llava_hr_releases import tiny_weights, write_release
from safetensors.torch import save_file

from llava_hr.checkpoints.convert import KEPT, convert
from llava_hr.miniature.model import mini_tokenizer
from llava_hr.modeling import LlavaHrForConditionalGeneration
from tenfold import UserError
from tenfold import weights as weight_files

TOKENIZER = mini_tokenizer().backend_tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("official") / "llava-hr-tiny")


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    output = tmp_path_factory.mktemp("ours") / "llava-hr"
    return convert(release, output, shard_bytes=30_000)


class Code:
    """A pickle that makes a folder when it is loaded without restriction."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def edit_json(name, **changes):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return spoil


def edit_weights(change):
    def spoil(folder):
        path = sorted(folder.glob("*.bin"))[0]
        weights = torch.load(path, weights_only=True)
        change(weights)
        torch.save(weights, path)

    return spoil


def without(pattern):
    def spoil(folder):
        index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if pattern not in name}
        for path in folder.glob("*.bin"):
            weights = torch.load(path, weights_only=True)
            torch.save({name: value for name, value in weights.items() if pattern not in name}, path)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    return spoil


def cut(name, part=0.5):
    def spoil(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    return spoil


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def index(**changes):
    def spoil(folder):
        path = folder / "pytorch_model.bin.index.json"
        content = json.loads(path.read_text())
        content["weight_map"] |= changes
        path.write_text(json.dumps(content))

    return spoil


def code(old):
    """A file of torch.save, of today or from before its zip archives, with code in it."""

    def spoil(folder):
        weights = {"lm_head.weight": Code(folder / "ran")}
        torch.save(weights, folder / SHARD, _use_new_zipfile_serialization=not old)

    return spoil


SHARD = "pytorch_model-00001-of-00003.bin"
INDEX = "pytorch_model.bin.index.json"
WRONG = {
    "no folder": (lambda folder: shutil.rmtree(folder), "no such model"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "half a config": (cut("config.json"), r"broken JSON .*config.json, line"),
    "a list as config": (write("config.json", b"[]"), "list instead of settings"),
    "a config that is no text": (write("config.json", b"\xff\xfe"), "is not text"),
    "transformers' own LLaVA": (
        write("config.json", b'{"model_type": "llava"}'),
        "not an official LLaVA-HR .model_type",
    ),
    "our own folder": (write("config.json", b'{"model_type": "llava_hr"}'), "not an official LLaVA-HR"),
    "another projector": (edit_json("config.json", mm_projector_type="linear"), "mm_projector_type"),
    "another vocabulary": (edit_json("config.json", vocab_size=421), r"is \[420, 24\].*\[421, 24\] by its config"),
    "another depth": (edit_json("config.json", num_hidden_layers=2), "weights too many, first model.layers.2"),
    "more depth": (edit_json("config.json", num_hidden_layers=4), "9 weights missing, first model.layers.3"),
    "freeze_vision with adapters": (edit_json("config.json", freeze_vision=True), "the weights hold MR-Adapters"),
    "no adapters": (without("align_stages_latent"), "no MR-Adapters"),
    "one adapter lost": (without("align_stages_latent.1."), r"12 weights missing, first .*align_stages_latent\.1"),
    "no final align": (without("align_stages.0."), "4 weights missing"),
    "no ViT": (without("fast_vision_tower"), "no CLIP vision tower in the weights"),
    "no ConvNeXt": (without("slow_vision_tower"), "a ConvNeXt of 0 stages"),
    "a head of the tower unknown": (
        write("vision_tower/config.json", b'{"num_attention_heads": 3}'),
        "a ViT of width 16",
    ),
    "heads that are no number": (write("vision_tower/config.json", b'{"num_attention_heads": "two"}'), "num_attention"),
    "a foreign weight": (edit_weights(lambda w: w.update(foreign=torch.ones(1))), "no weight foreign"),
    "another shape": (
        edit_weights(lambda w: w.update({"model.mm_projector.2.bias": torch.ones(23).half()})),
        r"mm_projector.2.bias is in two shards|is \[23\]",
    ),
    "a shard cut": (cut(SHARD), f"broken, truncated or no plain weights .*{SHARD}"),
    "a shard cut at its end": (cut(SHARD, 0.999), f"broken, truncated or no plain weights .*{SHARD}"),
    "an empty shard": (write(SHARD, b""), f"broken, truncated or no plain weights .*{SHARD}"),
    "a text as shard": (write(SHARD, b"a pointer to a large file"), f"no plain weights .*{SHARD}"),
    "code in a shard": (code(old=False), f"no plain weights .*{SHARD}"),
    "code in an old shard": (code(old=True), f"no plain weights .*{SHARD}"),
    "an optimiser's state": (edit_weights(lambda w: w.update(step=3)), "not a state dict"),
    "a shard missing": (lambda folder: (folder / SHARD).unlink(), f"1 of 3 shards missing: .*{SHARD}"),
    "no index": (lambda folder: (folder / INDEX).unlink(), "shards without their index"),
    "half an index": (cut(INDEX), f"broken JSON .*{INDEX}, line"),
    "an index without a map": (write(INDEX, b"{}"), "no weight_map"),
    "a promise": (index(**{"lm_head.bias": SHARD}), "no weight lm_head.bias"),
    "an index that points elsewhere": (index(**{"lm_head.weight": "../x.bin"}), r"lm_head.weight is in '\.\./x.bin'"),
    "no weights": (lambda folder: [path.unlink() for path in folder.glob("*.bin*")], "no weights"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer"),
    "a broken tokenizer": (write("tokenizer.model", b"not a model"), "cannot be loaded.*a whole SentencePiece model"),
    "a cut tokenizer": (cut("tokenizer.model"), "cannot be loaded.*a whole SentencePiece model"),
    "half a tokenizer.json": (write("tokenizer.json", b'{"model": '), "broken JSON .*tokenizer.json, line 1"),
    "half a tokenizer_config.json": (
        lambda folder: [write("tokenizer.json", TOKENIZER)(folder), write("tokenizer_config.json", b"{")(folder)],
        "broken JSON .*tokenizer_config.json, line 1",
    ),
    "a post-processor of no kind": (
        write("tokenizer.json", json.dumps({**json.loads(TOKENIZER), "post_processor": 7}).encode()),
        "cannot be loaded .*a tokenizer as transformers writes it",
    ),
    "no tokenizer in its json": (write("tokenizer.json", b"{}"), "no tokenizer in it"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_release_is_said_in_one_line(release, tmp_path, wrong):
    """Fails if another error comes, none comes, the message spans lines, a part of the output stays, or code runs."""
    spoil, message = WRONG[wrong]
    folder = shutil.copytree(release, tmp_path / "release")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        convert(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"release"}
    assert not (folder / "ran").exists()


def test_more_words_than_the_model_has_are_refused(tmp_path):
    weights = tiny_weights(words=400)
    release = write_release(tmp_path / "release", weights, {"vocab_size": 400})
    with pytest.raises(UserError, match=r"420 words.*at most the 400 of the model"):
        convert(release, tmp_path / "out")


@pytest.mark.parametrize("to", ["ours", "official"])
def test_an_output_that_exists_is_left_alone(release, converted, tmp_path, to):
    """Fails if a folder with files in it is replaced or added to."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    source = release if to == "ours" else converted.output
    for output, message in (("out", "already exists"), ("file", "is a file")):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / output, to=to)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "file"}


@pytest.mark.parametrize("to", ["ours", "official"])
def test_a_conversion_that_dies_leaves_nothing(release, converted, tmp_path, monkeypatch, to):
    """Fails if a part of the output appears under its name, or a temporary folder stays."""
    calls = []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr(weight_files, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        convert(release if to == "ours" else converted.output, tmp_path / "out", to=to, shard_bytes=30_000)
    assert list(tmp_path.iterdir()) == []


BACK = {
    "an official one": (
        lambda folder: shutil.copyfile(folder / KEPT / "config.json", folder / "config.json"),
        "not one of this",
    ),
    "a config of nonsense": (edit_json("config.json", vision_config={"image_size": 500}), "image_size does not fit"),
    "a config of another type": (edit_json("config.json", text_config="llama"), "cannot be loaded .*a config.json"),
    "constants": (edit_json("config.json", projector_hidden_act="relu"), "projector_hidden_act is relu"),
    "no tokenizer": (
        lambda folder: [shutil.rmtree(folder / KEPT), (folder / "tokenizer.json").unlink()],
        "no tokenizer",
    ),
    "unused is broken": (cut(f"{KEPT}/unused.safetensors"), "broken or truncated"),
    "unused is used": (
        lambda folder: save_file({"lm_head.weight": torch.ones(1)}, folder / KEPT / "unused.safetensors"),
        "lm_head.weight is not for this file",
    ),
    "a cut shard": (cut("model-00001-of-00007.safetensors"), "broken or truncated .*model-00001-of-00007"),
    "a lost shard": (lambda folder: (folder / "model-00002-of-00007.safetensors").unlink(), "1 of 7 shards missing"),
    "weights of another type": (
        lambda folder: save_file({"x": torch.ones(1, dtype=torch.int8)}, folder / "model-00001-of-00007.safetensors"),
        "x is of type I8",
    ),
    "a weight of another name": (
        lambda folder: save_file({"x": torch.ones(1)}, folder / "model-00001-of-00007.safetensors"),
        "what the index promises",
    ),
}


@pytest.mark.parametrize("wrong", BACK)
def test_what_is_wrong_with_our_folder_is_said_in_one_line(converted, tmp_path, wrong):
    """Fails if another error comes, none comes, or a part of the output stays."""
    spoil, message = BACK[wrong]
    folder = shutil.copytree(converted.output, tmp_path / "ours")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        convert(folder, tmp_path / "out", to="official")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"ours"}


def test_the_miniature_has_no_official_form(tmp_path):
    """Its resolutions are constants of the official code."""
    LlavaHrForConditionalGeneration(tiny_config()).save_pretrained(tmp_path / "tiny")
    with pytest.raises(UserError, match="min_low_size is 28"):
        convert(tmp_path / "tiny", tmp_path / "out", to="official")
