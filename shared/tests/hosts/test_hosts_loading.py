"""A model's folder from elsewhere: its code is never run, its numbers are looked at, and what is wrong is one line."""

import builtins
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tenfold import UserError
from tenfold.cli.settings import HostSettings
from tenfold.data import mini_host
from tenfold.hosts.loading import load_host, loading_from

MAP = {
    "AutoConfig": "evil.EvilConfig", "AutoModelForImageTextToText": "evil.Evil", "AutoProcessor": "evil.EvilProcessor",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"], "AutoImageProcessor": "evil.EvilImageProcessor",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(mini_host.path(), tmp_path / "host")


def edit(path, **values):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def hostile(folder, kind):
    """A folder with code of its own, which leaves a mark beside it when it is run."""
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w').close()\n")
    if kind == "an unknown model":
        edit(folder / "config.json", model_type="evil", architectures=["Evil"], auto_map=MAP)
    elif kind == "a known model":
        edit(folder / "config.json", auto_map=MAP)
    else:
        for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
            edit(folder / name, processor_class="EvilProcessor", tokenizer_class="EvilTokenizer", auto_map=MAP)
    return folder


@pytest.mark.parametrize("kind", ["an unknown model", "a known model", "a processor"])
def test_code_in_a_models_folder_is_never_run_and_nobody_is_asked(folder, kind, monkeypatch):
    """Fails if `trust_remote_code=False` is left out: transformers asks on standard input, and "y" runs the file."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    hostile(folder, kind)
    try:
        load_host(HostSettings(model=str(folder), device="cpu"))
    except UserError as error:
        assert "\n" not in str(error)
    assert asked == [] and not (folder.parent / "ran").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
    """Fails if the host's weights are not looked at: every answer would be the same word, without a word of why."""
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layers.3" in name)
    state[name].view(-1)[0] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not finite"):
        load_host(HostSettings(model=str(folder), device="cpu"))


@pytest.mark.parametrize(
    "raised",
    [
        AttributeError("'list' object has no attribute 'get'"),
        RecursionError("maximum recursion depth exceeded"),
        Exception("data did not match any variant of untagged enum"),
        UnicodeDecodeError("utf-8", b"\x8c", 0, 1, "invalid start byte"),
        KeyError("hidden_size\nand more"),
    ],
)
def test_whatever_a_library_raises_is_one_line_with_its_cause(tmp_path, raised):
    """Fails if the clause is narrowed: of each of these one was seen on a damaged file."""
    with pytest.raises(UserError, match="cannot be loaded") as caught, loading_from(tmp_path, "a model"):
        raise raised
    assert caught.value.__cause__ is raised and "\n" not in str(caught.value)


def test_ends_of_the_process_and_missing_libraries_pass(tmp_path):
    """Fails if the clause takes what is no damage of the folder."""
    for passes in (KeyboardInterrupt(), SystemExit(3), ImportError("no torchvision"), UserError("ours")):
        with pytest.raises(type(passes)), loading_from(tmp_path, "a model"):
            raise passes
