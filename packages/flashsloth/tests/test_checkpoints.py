"""Releases in and out (sheet section 4, D3 and D10)."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from flashsloth_releases import release_config, weights, write_release
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

import flashsloth
from flashsloth.checkpoints import tokenizer
from flashsloth.checkpoints.convert import convert
from flashsloth.checkpoints.keys import renamed, to_official, to_ours
from flashsloth.checkpoints.load import load
from flashsloth.checkpoints.release import config_to_official, config_to_ours
from flashsloth.configuration import FlashSlothConfig
from flashsloth.miniature.vocabulary import write_vocabulary
from tenfold import UserError
from tenfold.weights import WeightFiles


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("hub") / "FlashSloth-3.2B")


@pytest.fixture(scope="module")
def ours(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "flashsloth"
    convert(release, folder, shard_bytes=2_000_000)
    return folder


def stored(folder):
    with WeightFiles(folder) as files:
        return {name: tensor.read() for name, tensor in files.tensors.items()}


def test_a_release_loads_as_it_is(release):
    """Half precision, shards, no SigLIP anywhere. Fails if a weight is lost, or the tower's path is looked at."""
    model, processor = load(release)
    assert model.dtype == torch.float16 and len(list(release.glob("model-*.safetensors"))) > 1
    official = weights(release_config())
    ours = to_official(model.state_dict())
    assert ours.keys() == official.keys() and all(torch.equal(ours[name], official[name]) for name in ours)
    assert model.generation_config.eos_token_id == [50296, 50256]
    assert model.config.instruction_tuned and model.config.views == 1
    assert (processor.query_token_id, processor.image_token_id) == (50295, 50297)


def test_converted_and_back_bit_by_bit(release, ours, tmp_path):
    """Fails if a name, a bit, a dtype or the tokenizer changes on the way."""
    back = tmp_path / "back"
    convert(ours, back, to="official")
    first, again = stored(release), stored(back)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) and first[name].dtype == again[name].dtype for name in first)
    config, old = (json.loads((folder / "config.json").read_text()) for folder in (back, release))
    assert config == old
    text = "USER: <image>\nWhat  is it?<learnable> ASSISTANT: Red.</s>"
    assert tokenizer.build(back)(text)["input_ids"] == tokenizer.build(release)(text)["input_ids"]
    assert json.loads((ours / "generation_config.json").read_text())["eos_token_id"] == [50296, 50256]


def test_release_and_converted_answer_alike(release, ours):
    """The same bits of the same prompt. Fails if the processor differs between the two."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    made = []
    for folder in (release, ours):
        model, processor = flashsloth.load(folder, dtype="float32")
        inputs = processor(images=picture, text=processor.prompt("What is it?"), return_tensors="pt")
        made.append(model(**inputs).logits)
    assert torch.equal(*made) and bool(made[0].isfinite().all())


def test_hd_and_stage_1_are_told_apart(tmp_path, caplog):
    """`image_hd` is True, False or absent. Fails if stage 1 does not warn, or warns twice (part two, B3)."""
    assert config_to_ours({**config_to_official(release_config()), "image_hd": True}).views == 5
    folder = write_release(tmp_path / "Stage1", stage1=True)
    model, processor = load(folder, dtype="float32")
    assert not model.config.instruction_tuned
    inputs = processor(text=processor.prompt("Hello", image=False), return_tensors="pt")
    logging.getLogger("transformers").propagate = True
    model.generation_config.eos_token_id = None
    transformers_logging.warning_once.cache_clear()  # another test of this process may have made it say so already
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    logging.getLogger("transformers").propagate = False
    assert made.shape[1] == inputs["input_ids"].shape[1] + 3
    assert caplog.text.count("weights of stage 1") == 1


def test_the_tower_is_compared_with_siglip(release, tmp_path):
    """Fails if a changed weight goes unnoticed; the number answers whether HD's tower was trained (part two, A6)."""
    tower = "model.vision_tower.vision_tower."
    theirs = {name.removeprefix(tower): t for name, t in weights(release_config()).items() if name.startswith(tower)}
    theirs["vision_model.post_layernorm.weight"] = torch.ones(24)
    siglip = tmp_path / "siglip"
    siglip.mkdir()
    save_file(theirs, siglip / "model.safetensors")
    assert convert(release, tmp_path / "a", siglip=siglip).tower_difference == 0.0
    theirs["vision_model.embeddings.patch_embedding.bias"][0] += 0.5
    save_file(theirs, siglip / "model.safetensors")
    assert convert(release, tmp_path / "b", siglip=siglip).tower_difference == pytest.approx(0.5, abs=1e-3)


def test_unused_names_are_left_out_and_unknown_ones_refused():
    state = weights(release_config())
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    assert len(to_ours(state | extra)) == len(state)
    with pytest.raises(UserError, match="no weight model"):
        renamed(["model.extra"], "ours")


def test_a_constant_of_the_official_code_cannot_be_written():
    config = release_config()
    config.pool = 2
    with pytest.raises(UserError, match="pool is 2"):
        config_to_official(config)
    assert (
        config_to_ours(config_to_official(FlashSlothConfig(dtype="float16"))).to_dict()
        == FlashSlothConfig(dtype="float16", architectures=["FlashSlothForConditionalGeneration"]).to_dict()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", "broken or truncated"),
        ("missing shard", "shards missing"),
        ("missing weight", "no weight"),
        ("wrong shape", "by its config"),
        ("not finite", "not finite"),
        ("no config", "no config.json"),
        ("broken config", "config.json"),
        ("another model", "not a FlashSloth"),
        ("another projector", "mm_projector_type"),
        ("no tokenizer", "no tokenizer"),
        ("another vocabulary", "Phi-2"),
        ("broken merges", "merges.txt"),
        ("merges of no words", "words of vocab.json"),
    ],
)
def test_broken_releases_are_refused_in_one_line(release, tmp_path, change, message):
    """Fails if one passes, or ends in something other than a `UserError`; nothing is left behind."""
    folder = tmp_path / "release"
    shutil.copytree(release, folder)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    config = json.loads((folder / "config.json").read_text())
    if change == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif change == "missing shard":
        shard.unlink()
    elif change in ("missing weight", "wrong shape", "not finite"):
        tensors = load_file(shard)
        name = next(iter(tensors))
        if change == "missing weight":
            del tensors[name]
        elif change == "wrong shape":
            tensors[name] = torch.zeros(3, dtype=torch.float16)
        else:
            tensors[name].view(-1)[0] = float("nan")
        save_file(tensors, shard)
    elif change == "no config":
        (folder / "config.json").unlink()
    elif change == "broken config":
        (folder / "config.json").write_text("{")
    elif change == "another model":
        (folder / "config.json").write_text('{"model_type": "llama"}')
    elif change == "another projector":
        (folder / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))
    elif change == "no tokenizer":
        (folder / "vocab.json").unlink()
    elif change == "another vocabulary":
        (folder / "merges.txt").write_text("#version: 0.2\n")
    elif change == "merges of no words":
        (folder / "merges.txt").write_text('#version: 0.2\nI" I\n')
    else:
        (folder / "merges.txt").write_text("#version: 0.2\nabc\n")
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    if change != "not finite":  # bits are converted as they are
        with pytest.raises(UserError):
            convert(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_marker_of_another_id_is_refused(ours, tmp_path):
    """Part two, B5: the tokenizer's <learnable> must be the config's."""
    folder = tmp_path / "other"
    shutil.copytree(ours, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"query_token_id": 50299}))
    with pytest.raises(UserError, match="50295"):
        load(folder)


def test_the_tokenizer_of_a_phi_2_folder(tmp_path):
    """Without added_tokens.json, as Phi-2's own folder may be. Fails if one of the five known ids differs."""
    made = tokenizer.build(write_vocabulary(tmp_path))
    assert all(made(text)["input_ids"] == ids for text, ids in tokenizer.KNOWN.items())
    assert made("  ")["input_ids"] == [50286] and made("\t\t")["input_ids"] == [50294]
    assert made.decode(made("a  b\n")["input_ids"]) == "a  b\n"
