"""Models of ours on disk: what is found, read and refused before anything is loaded."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig

from tenfold import UserError
from tenfold.hosts.checkpoints import (
    check_weights,
    compared,
    dtype_of,
    find_model,
    from_state,
    meta_state,
    read_config,
    read_settings,
    require_shipped,
    require_type,
)
from tenfold.weights import StoredTensor

TINY = LlamaConfig(
    vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, dtype="float32"
)


@pytest.fixture
def folder(tmp_path):
    TINY.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_found_by_its_absolute_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert find_model(folder.name, "a/b") == folder.resolve()


@pytest.mark.parametrize(
    ("name", "value"),
    [("architectures", 5), ("architectures", [["a"]]), ("architectures", "Llama"), ("model_type", [])],
)
def test_a_config_that_names_nothing_is_one_line(folder, name, value):
    """Fails if a number is read as a list of names, or a list as a name."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(UserError, match=name) as caught:
        read_settings(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no such folder", "../nothing/here/x", "config.json"])
def test_what_is_neither_folder_nor_hub_id_is_refused_with_an_example(name, folder, monkeypatch):
    """Fails if a mistyped path becomes a download."""
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="such as a/b"):
        find_model(name, "a/b")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no config.json"), ("[1]", "list instead of settings"), ("{", "config.json")],
)
def test_broken_settings_are_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path)


def test_no_folder_is_not_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_settings(tmp_path / "nothing")
    with pytest.raises(UserError, match="no mini model"):
        require_shipped(tmp_path)


def test_another_model_type_is_refused(folder):
    require_type(folder, LlamaConfig)
    with pytest.raises(UserError, match="model_type 'llama'"):
        require_type(folder, ViTConfig)


def test_values_that_no_config_can_have_are_one_line(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"hidden_size": "wide"}))
    with pytest.raises(UserError):
        read_config(LlamaConfig, folder)


def test_dtypes_are_those_of_the_list():
    assert dtype_of("auto") == "auto" and dtype_of("bfloat16") is torch.bfloat16
    assert dtype_of(torch.float64) is torch.float64
    with pytest.raises(UserError, match="float32, bfloat16"):
        dtype_of("load")  # an attribute of torch


@pytest.mark.parametrize("values", [{"vocab_size": -1}, {"hidden_act": " "}])
def test_numbers_that_no_model_can_have_are_one_line(values):
    """Fails if what a module raises when it is built reaches the user."""
    config = LlamaConfig.from_dict(TINY.to_dict())
    for name, value in values.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match="numbers that a llama can have"):
        meta_state(LlamaForCausalLM, config)


def test_weights_that_differ_are_named():
    state = meta_state(LlamaForCausalLM, TINY)
    assert all(tensor.device.type == "meta" for tensor in state.values())
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    stored = {name: StoredTensor.of(torch.zeros(shape)) for name, shape in shapes.items()}
    check_weights(stored, shapes, "here")
    first = next(iter(shapes))
    with pytest.raises(UserError, match=f"1 weights missing, first {first}"):
        check_weights({name: one for name, one in stored.items() if name != first}, shapes, "here")
    with pytest.raises(UserError, match="first extra"):
        check_weights(stored | {"extra": stored[first]}, shapes, "here")
    with pytest.raises(UserError, match=r"\[3\]"):
        check_weights(stored | {first: StoredTensor.of(torch.zeros(3))}, shapes, "here")


def test_the_official_keys_are_compared_both_ways():
    theirs, ours = {"a": (1,), "b": (2, 2), "c": (3,)}, {"b": (2, 3), "c": (3,), "d": (4,)}
    assert compared(theirs, theirs) == []
    assert compared(ours, theirs) == ["a is missing", "d is too many", "b is (2, 3), official (2, 2)"]


def test_a_model_from_its_state_does_not_change_with_what_it_was_read_from(tmp_path):
    """Fails if mapped memory becomes the model's own parameters."""
    torch.manual_seed(0)
    source = LlamaForCausalLM(TINY)
    state = {name: StoredTensor.of(tensor) for name, tensor in source.state_dict().items()}
    model = from_state(LlamaForCausalLM, TINY, state, "auto", "sdpa", tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    assert torch.equal(before, source.eval()(input_ids=ids).logits)
    with torch.no_grad():
        source.lm_head.weight.zero_()
    assert torch.equal(model(input_ids=ids).logits, before)
    with pytest.raises(UserError):
        from_state(LlamaForCausalLM, TINY, dict(list(state.items())[1:]), "auto", "sdpa", tmp_path)
