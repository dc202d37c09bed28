"""`llava_hr.load`: official folders without conversion, this package's, hub ids; and what is wrong with a name."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from llava_hr_fixtures import tiny_model
from llava_hr_releases import tiny_weights, write_release
from PIL import Image
from safetensors.torch import load_file, save_file

import llava_hr
from llava_hr.checkpoints.convert import convert
from llava_hr.checkpoints.keys import to_ours
from llava_hr.checkpoints.load import find_model, load
from tenfold import UserError
from tenfold.hosts import checkpoints as loading
from tenfold.runs.ranks import choose_device


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("official") / "llava-hr-tiny")


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    return convert(release, tmp_path_factory.mktemp("ours") / "llava-hr").output


def answer(model, processor):
    inputs = processor(images=Image.new("RGB", (40, 20), "red"), text=processor.prompt("what?"), return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)


def test_an_official_folder_opens_as_its_conversion_does(release, converted):
    """Fails if a weight, the type, the prompt or the answer of the two differs, or something is written."""
    before = sorted(path.name for path in release.rglob("*"))
    official, its_processor = llava_hr.load(release)
    ours, processor = llava_hr.load(converted)
    assert official.dtype == ours.dtype == torch.float16
    state, expected = official.state_dict(), ours.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert all(torch.equal(state[name], value) for name, value in to_ours(tiny_weights()).items())
    assert not official.training and official.config.image_token_id == ours.config.image_token_id == 420
    for one in (official, ours):
        one.float()
    assert torch.equal(answer(official, its_processor), answer(ours, processor))
    assert official.generation_config.eos_token_id == ours.generation_config.eos_token_id == 2
    assert sorted(path.name for path in release.rglob("*")) == before


@pytest.mark.parametrize("pickled", [True, False])
def test_a_model_does_not_hang_on_its_files(tmp_path, pickled):
    """Fails if weights stay mapped: a folder that is written to while the model is in use would change its answers."""
    folder = write_release(tmp_path / "release", pickled=pickled)
    model, _ = load(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for path in (*folder.glob("*.bin"), *folder.glob("*.safetensors")):
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("folder", ["release", "converted"])
def test_type_device_and_attention_are_as_asked(folder, request):
    """Fails if one of the two ways in overlooks an argument."""
    model, _ = load(request.getfixturevalue(folder), dtype="float32", device="cpu", attention="eager")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.config.text_config._attn_implementation == "eager"
    model, _ = load(request.getfixturevalue(folder), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    # Buffers that no file has are not left empty.
    assert model.model.language_model.rotary_emb.inv_freq[0] == 1


def test_a_tokenizer_from_elsewhere(release, tmp_path):
    bare = write_release(tmp_path / "bare", tokenizer=False)
    with pytest.raises(UserError, match="no tokenizer"):
        load(bare)
    _, processor = load(bare, tokenizer=release)
    assert processor.image_token_id == 420


def fake_hub(monkeypatch, folder, names):
    """`snapshot_download` of a repository that holds these files."""
    asked = []

    def snapshot(repository, allow_patterns):
        from fnmatch import fnmatch

        asked.append((repository, allow_patterns))
        target = folder / f"snapshot{len(asked)}"
        target.mkdir()
        for path in names:
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(path, target / path.name)
        return str(target)

    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    return asked


def test_a_hub_id_is_fetched(release, tmp_path, monkeypatch):
    """Fails if an official repository of pickles is not found, or its side files are not fetched."""
    asked = fake_hub(monkeypatch, tmp_path, [path for path in release.iterdir() if path.is_file()])
    folder = find_model("favor123/llava-hr-7b-sft-1024")
    assert [name for name, _ in asked] == ["favor123/llava-hr-7b-sft-1024"] * 2
    assert {path.name for path in folder.iterdir()} == {path.name for path in release.iterdir() if path.is_file()}


def test_pickles_are_not_fetched_besides_safetensors(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / "repository" / name).write_bytes(b"")
    asked = fake_hub(monkeypatch, tmp_path, list((tmp_path / "repository").iterdir()))
    assert {path.name for path in find_model("a/b").iterdir()} == {"config.json", "model.safetensors"}
    assert len(asked) == 1


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("Cannot find the requested files in the disk cache. More text.")

    monkeypatch.setattr(loading, "snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"Cannot find the requested files in the disk cache: favor123/x .expected a local"
    ):
        load("favor123/x")


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(change):
    def spoil(folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return spoil


def change_config(**values):
    def spoil(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | values))

    return spoil


BIAS = "model.multi_modal_projector.linear_2.bias"
WRONG = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), "broken JSON"),
    "another model": (change_config(model_type="llava"), "not a LLaVA-HR .model_type 'llava'"),
    "another resolution": (change_config(vision_config={"image_size": 500}), "image_size does not fit"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named"),
    "cut weights": (cut_weights, "a LLaVA-HR with its processor"),
    "a missing weight": (change_weights(lambda w: w.pop(BIAS)), f"1 weights missing, first {BIAS}"),
    "a foreign weight": (change_weights(lambda w: w.update(x=torch.ones(1))), "1 weights unexpected, first x"),
    "another shape": (change_weights(lambda w: w.update({BIAS: torch.ones(23)})), rf"first {BIAS} \[23\].*\[24\]"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "a LLaVA-HR with its processor",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(converted, tmp_path, wrong):
    """Fails if another error comes, or the model opens with random weights."""
    spoil, message = WRONG[wrong]
    folder = shutil.copytree(converted, tmp_path / "ours")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "no such model: nowhere"),
        ("/nowhere/at/all", {}, "no such model"),
        ("{file}", {}, "no such model"),
        ("{ours}", {"dtype": "int8"}, "dtype 'int8'"),
        ("{ours}", {"device": "abacus"}, "no such device: abacus"),
        ("{ours}", {"device": "cuda:99"}, "no such CUDA device"),
    ],
)
def test_what_cannot_be_loaded_is_said(converted, name, options, message):
    with pytest.raises(UserError, match=message):
        load(name.format(ours=converted, file=converted / "config.json"), **options)


def test_transformers_is_as_loud_as_before(converted):
    """Fails if loading leaves its reports of keys switched off."""
    from transformers.utils import logging

    logging.set_verbosity_info()
    load(converted)
    assert logging.get_verbosity() == logging.INFO
    logging.set_verbosity_warning()


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (choose_device("auto"), choose_device("cuda:1")) == (torch.device("cuda:0"), torch.device("cuda:1"))
    with pytest.raises(UserError, match="one of the 2 here"):
        choose_device("cuda:2")


def test_a_model_saved_by_transformers_opens(tmp_path):
    """Its processor is needed, too. Fails if a folder without one opens."""
    tiny_model().save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="a LLaVA-HR with its processor"):
        load(tmp_path / "saved")
