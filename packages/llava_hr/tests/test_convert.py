"""`llava-hr convert`: tiny releases with official names, there and back; and everything that can be wrong with one."""

import json
import shutil

import pytest
import torch
from llava_hr_releases import (
    ADAPTERS,
    CONFIG,
    CONVNEXT,
    GOLDENS,
    UNUSED,
    VIT,
    WORDS,
    golden_weights,
    read_weights,
    same,
    tiny_weights,
    write_release,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from llava_hr.checkpoints.convert import KEPT, convert
from llava_hr.checkpoints.load import load
from llava_hr.commands import bench
from llava_hr.commands import convert as cli_convert
from llava_hr.evidence.parity.model import golden_model, splice
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold import weights as weight_files

SIDE = ("config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("official") / "llava-hr-tiny")


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    output = tmp_path_factory.mktemp("ours") / "llava-hr"
    return convert(release, output, shard_bytes=30_000)


def test_there_and_back_is_bit_identical(release, converted, tmp_path):
    """Fails if a weight changes by a bit or its type, one is lost, or a side file differs in a byte."""
    back = convert(converted.output, tmp_path / "back", to="official")
    assert same(tiny_weights(), read_weights(tmp_path / "back"))
    for name in SIDE:
        assert (tmp_path / "back" / name).read_bytes() == (release / name).read_bytes(), name
    assert json.loads((tmp_path / "back" / "vision_tower" / "config.json").read_text())["num_attention_heads"] == 2
    assert back.parameters == converted.parameters and back.made_up == ()
    used = sum(value.numel() for name, value in tiny_weights().items() if name not in UNUSED and ".head." not in name)
    assert sum(converted.parameters.values()) == used


def test_and_there_again_gives_the_same_folder(converted, tmp_path):
    """Fails if the way back loses what the way there needs."""
    convert(converted.output, tmp_path / "back", to="official")
    convert(tmp_path / "back", tmp_path / "again", shard_bytes=30_000)
    folders = (converted.output, tmp_path / "again")
    before, after = ({path.relative_to(f): path for path in f.rglob("*") if path.is_file()} for f in folders)
    assert before.keys() == after.keys() and len(before) > 12
    assert all(path.read_bytes() == after[name].read_bytes() for name, path in before.items())


@pytest.mark.parametrize("layout", ["one file", "safetensors", "legacy pickles"])
def test_every_layout_of_the_files_is_read(tmp_path, converted, layout):
    """Fails if a layout converts to anything else."""
    release = write_release(
        tmp_path / "release", pickled=layout != "safetensors", shards=1 if layout == "one file" else 2
    )
    if layout == "legacy pickles":
        for path in release.glob("*.bin"):
            torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    convert(release, tmp_path / "out")
    assert same(read_weights(converted.output), read_weights(tmp_path / "out"))
    assert same(
        load_file(converted.output / KEPT / "unused.safetensors"),
        load_file(tmp_path / "out" / KEPT / "unused.safetensors"),
    )


def test_a_converted_golden_model_computes_what_the_golden_model_computes(tmp_path):
    """Fails if two weights of one shape are swapped, or a dimension of config.json is wrong.

    The golden model itself agrees with the authors' code (test_parity.py).
    """
    case = json.loads((GOLDENS / "tiny_llava_hr.json").read_text())
    tensors = load_file(GOLDENS / "tiny_llava_hr.safetensors")
    config = {"vocab_size": 60, "torch_dtype": "float32"}
    release = write_release(tmp_path / "golden", golden_weights(), config, tokenizer=False)
    words = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(("<unk>", "<s>", "</s>", "what"))}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(release / "tokenizer.json"))
    convert(release, tmp_path / "ours")
    model, processor = load(tmp_path / "ours")
    # A tokenizer of fewer words than the model has: its own id of <image> counts.
    assert model.config.image_token_id == processor.image_token_id == 4
    expected = golden_model(case["config"], tensors)
    assert same(model.state_dict(), expected.state_dict())
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    ids = splice(torch.tensor([[1, 7, -200, 9, 30]]), expected.config)["input_ids"]
    ours = ids.masked_fill(ids == expected.config.image_token_id, model.config.image_token_id)
    with torch.no_grad():
        logits = expected(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(model(input_ids=ours, pixel_values=pixels).logits, logits, atol=1e-5, rtol=1e-5)


def test_prompts_become_the_official_ids(converted):
    """Fails without the legacy splitting, although tokenizer_config.json says legacy false; or if words are added."""
    processor = LlavaHrProcessor.from_pretrained(converted.output, local_files_only=True)
    case = json.loads((GOLDENS / "conversation.json").read_text())["config"]
    tensors = load_file(GOLDENS / "conversation.safetensors")
    for number, sample in enumerate(case["cases"]["samples"]):
        images = ["image"] if "image" in sample["record"] else []
        encoded = processor.encode_turns(sample["record"]["conversations"], len(images))
        assert encoded.input_ids == tensors[f"out/{number}.input_ids"].tolist()
        assert encoded.labels == tensors[f"out/{number}.labels"].tolist()
    assert processor.image_token_id == WORDS and processor.num_image_tokens == 576
    assert json.loads((converted.output / "config.json").read_text())["image_token_id"] == WORDS


def test_a_converted_release_answers_about_an_image(converted):
    """Fails if config, weights, tokenizer, processor and generation config do not fit together."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import llava_hr.auto  # noqa: F401

    model, loading = AutoModelForImageTextToText.from_pretrained(
        converted.output, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = AutoProcessor.from_pretrained(converted.output, local_files_only=True)
    inputs = processor(images=Image.new("RGB", (40, 20), "red"), text=processor.prompt("what?"), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 3
    # Vicuna's own says how to sample; answers here are greedy.
    assert model.generation_config.temperature is None and model.generation_config.eos_token_id == 2


def test_one_shard_is_in_memory_at_a_time(release, tmp_path, monkeypatch):
    """Fails if a shard grows beyond its size, or a weight is written twice."""
    written, save = [], weight_files.save_file

    def saved(tensors, path, metadata):
        assert sum(value.nbytes for value in tensors.values()) <= 30_000
        written.extend(tensors)
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(weight_files, "save_file", saved)
    convert(release, tmp_path / "out", shard_bytes=30_000)
    assert sorted(written) == sorted(set(written)) and len(written) > 200
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 5


def test_shards_are_read_when_they_are_written(release, tmp_path, monkeypatch):
    """Fails if tensors of another shard are read as well."""
    read, write = [], weight_files.write_file
    original = weight_files.StoredTensor.of

    def of(tensor):
        stored = original(tensor)
        return weight_files.StoredTensor(stored.shape, stored.dtype, lambda: read.append(tensor.shape) or stored.read())

    def checked(path, tensors):
        read.clear()
        write(path, tensors)
        assert len(read) == len(tensors)

    monkeypatch.setattr(weight_files.StoredTensor, "of", of)
    monkeypatch.setattr(weight_files, "write_file", checked)
    convert(release, tmp_path / "out", shard_bytes=30_000)
    assert read


def test_a_model_that_was_saved_again_goes_back(converted, tmp_path):
    """A fine-tuned model's folder has no official files: what nothing uses is filled in, and said.

    Fails if names of save_pretrained differ from convert's, or the authors' code would find a weight missing.
    """
    model, processor = load(converted.output)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    made = convert(tmp_path / "saved", tmp_path / "back", to="official")
    before, after = tiny_weights(), read_weights(tmp_path / "back")
    # The head is made up as the authors' code makes it: 1000 classes.
    new = {name for name in before if name in UNUSED or ".head." in name} - {
        f"{VIT}embeddings.position_ids",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    assert set(made.made_up) == new and made.kept_aside == ()
    kept = {name: value for name, value in before.items() if name not in UNUSED and ".head." not in name}
    assert same(kept, {name: value for name, value in after.items() if name not in new})
    assert after[f"{CONVNEXT}head.fc.weight"].shape == (1000, 12) and not after[f"{CONVNEXT}head.fc.weight"].any()
    assert after[f"{VIT}post_layernorm.weight"].eq(1).all() and after[f"{CONVNEXT}head.norm.weight"].eq(1).all()
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: config[name] for name in ("vocab_size", "freeze_vision", "torch_dtype")} == {
        "vocab_size": WORDS,
        "freeze_vision": False,
        "torch_dtype": "float16",
    }
    words = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert words.get_vocab_size() == WORDS and "<image>" not in words.get_vocab()
    convert(tmp_path / "back", tmp_path / "again")
    assert same(read_weights(converted.output), read_weights(tmp_path / "again"))


def test_what_has_changed_since_is_written_into_the_original_config(converted, tmp_path):
    """Fails if a resolution that was changed after converting is lost on the way back, or other fields are."""
    shutil.copytree(converted.output, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["vision_config"]["image_size"] = 768
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG | {"input_image_size": 768}


def test_a_config_without_a_type_takes_that_of_the_weights(tmp_path):
    """Fails if float16 weights open as bfloat16, which drops bits."""
    release = write_release(tmp_path / "release", config={"torch_dtype": None})
    convert(release, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float16"
    assert load(tmp_path / "ours")[0].dtype == torch.float16


def test_a_model_without_adapters_converts(tmp_path):
    """A stage-1 model saved whole: freeze_vision true, no adapters in the file."""
    weights = {name: value for name, value in tiny_weights().items() if not name.startswith(ADAPTERS)}
    release = write_release(tmp_path / "release", weights, {"freeze_vision": True})
    assert convert(release, tmp_path / "ours").parameters["MR-Adapters"] == 0
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    assert same(weights, read_weights(tmp_path / "back"))


def test_a_tokenizer_from_elsewhere(converted, tmp_path):
    """Fails if --tokenizer is not used where the release has none, either way."""
    release = write_release(tmp_path / "release", tokenizer=False)
    words = write_release(tmp_path / "words")
    convert(release, tmp_path / "ours", tokenizer=words)
    assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == (converted.output / "tokenizer.json").read_bytes()
    shutil.rmtree(tmp_path / "ours" / KEPT)
    convert(tmp_path / "ours", tmp_path / "back", to="official", tokenizer=words)
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (words / "tokenizer.model").read_bytes()


@pytest.fixture(scope="module")
def command():
    import typer

    app = typer.Typer()
    app.command()(cli_convert.convert)
    app.command()(bench.bench)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_says_what_it_made(command, release, tmp_path):
    """Fails if a verb's option does not reach the work."""
    result = command("convert", release, tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert "parameters" in result.output and "MR-Adapters 5,127" in result.output
    assert "tensors that no computation uses: kept" in result.output
    result = command("convert", tmp_path / "ours", tmp_path / "back", "--to", "official")
    assert result.exit_code == 0 and same(tiny_weights(), read_weights(tmp_path / "back"))
    shutil.rmtree(tmp_path / "ours" / KEPT)
    result = command("convert", tmp_path / "ours", tmp_path / "filled", "--to", "official", "--tokenizer", release)
    assert "8 tensors that no computation uses: filled in" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to convert"),
        (("source",), "nothing to convert"),
        (("source", "target", "--to", "hf"), "unknown format"),
        (("source", "--check", "7b"), "--check converts nothing"),
        (("--check", "70b"), "no list of weights for 70b"),
    ],
)
def test_the_command_refuses(command, arguments, message):
    result = command("convert", *arguments)
    assert isinstance(result.exception, UserError) and message in str(result.exception)
