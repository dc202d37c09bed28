"""METER's Lightning checkpoints: read as data, refused where they do not fit, kept to the bit."""

import os
import sys
import types

import pytest
import torch
from meter_fixtures import TINY, inputs, meter, tokenizer

from eas.checkpoints.lightning import read_lightning
from eas.checkpoints.meter import convert_meter, open_meter, read_meter_about
from eas.meter import MeterConfig
from tenfold import UserError
from tenfold.runs import read_json


class Settings(dict):
    """Stands for the configuration object that Lightning keeps."""


def checkpoint(path, state, **more):
    """As Lightning writes it: the weights beside an object whose class is nowhere here."""
    module = types.ModuleType("sacred_settings")
    module.Settings, Settings.__module__, Settings.__qualname__ = Settings, "sacred_settings", "Settings"
    sys.modules["sacred_settings"] = module
    try:
        torch.save({"state_dict": state, "hyper_parameters": Settings(a=1), "random": torch.rand(3), **more}, path)
    finally:
        del sys.modules["sacred_settings"]
    return path


def pretrained(task="vqa", size=32):
    """METER's own weights, of pictures of another size, with the heads that it was trained with."""
    state = {
        name: value
        for name, value in meter(task=task, size=size).state_dict().items()
        if "adapter" not in name and "classifier" not in name and "rank_output" not in name
    }
    generator = torch.Generator().manual_seed(1)
    state["token_type_embeddings.weight"] = state["token_type_embeddings.weight"][:2].clone()
    state |= {"itm_score.fc.weight": torch.randn(2, 32, generator=generator), "itm_score.fc.bias": torch.ones(2)}
    state |= {"mlm_score.bias": torch.ones(4), "text_transformer.embeddings.position_ids": torch.arange(12)[None]}
    return state | {"vit_model.positional_embedding": torch.ones(77, 4), "nas_gate": torch.zeros(24)}


def test_a_tuned_checkpoint_keeps_every_bit_and_says_what_it_left(tmp_path):
    """Fails if a weight changes, the class of the settings is looked up, or what was left out is not told."""
    model = meter(skip=(3, 20))
    source = checkpoint(tmp_path / "a.ckpt", model.state_dict() | {"mlm_score.bias": torch.ones(4)})
    made = convert_meter(source, tmp_path / "m", model.config, tokenizer=tokenizer(tmp_path / "t"), answers=list("abc"))
    assert made.about.skipped == ("sacred_settings.Settings",) and made.about.left_out == {"heads of other tasks": 1}
    opened, about = open_meter(tmp_path / "m")
    assert about == made.about and about.trained_on == ("train2014", "val2014")
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in opened.state_dict().items())
    with torch.no_grad():
        assert torch.equal(opened(inputs()), model(inputs()))
    folded = convert_meter(source, tmp_path / "f", model.config, folded=True)
    with torch.no_grad():
        assert folded.config.folded and torch.allclose(
            open_meter(tmp_path / "f")[0](inputs()), model(inputs()), atol=1e-5
        )


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "irtr"])
def test_meters_own_weights_start_a_tuning(task, tmp_path):
    """Fails if a head starts elsewhere, adapters move the block, or positions are not those of the new size."""
    state = pretrained(task)
    config = MeterConfig(**TINY | {"task": task})
    made = convert_meter(checkpoint(tmp_path / "p.ckpt", state), tmp_path / "m", config)
    model, about = open_meter(tmp_path / "m")
    assert about.source == "pretrained" and about.trained_on == () and len(made.about.left_out) == 4
    zero = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(model.token4classifier, model.text_transformer.embeddings(zero))
        assert len(model.vit_model.visual.positional_embedding) == 5
        tokens = torch.randn(1, 4, 16)
        assert torch.equal(model.layers()[7].attention.adapter(tokens), tokens)
    if task == "irtr":
        assert torch.equal(model.rank_output.weight, state["itm_score.fc.weight"][1:])
    if task == "nlvr2":
        assert torch.equal(*model.token_type_embeddings.weight[1:])


def broken(change):
    state = meter().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("cross_modal_text_layers.2.adapter_self_attn.conv_A.weight"), "conv_A.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "extra has no place"),
        (lambda state: state.update(token4classifier=torch.ones(1, 1, 8)), "another shape"),
        (lambda state: state["token4classifier"].fill_(float("nan")), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, told, tmp_path):
    """Fails if a weight of the method stays at its start, or one without a place goes unsaid."""
    path = checkpoint(tmp_path / "b.ckpt", broken(change))
    with pytest.raises(UserError, match=told) as error:
        convert_meter(path, tmp_path / "m", meter().config)
    assert "\n" not in str(error.value) and not (tmp_path / "m").exists()


class Call:
    def __reduce__(self):
        return os.mkdir, ("called",)


def test_nothing_in_a_checkpoint_is_called(tmp_path, monkeypatch):
    """Fails if a function that a pickle names runs, or a file that is cut or holds no weights passes."""
    monkeypatch.chdir(tmp_path)
    weights, skipped = read_lightning(checkpoint(tmp_path / "c.ckpt", {"a": torch.ones(2, 3)}, evil=Call()))
    assert not (tmp_path / "called").exists() and "mkdir" in " ".join(skipped) and weights["a"].sum() == 6
    data = (tmp_path / "c.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    torch.save({"model": {}}, tmp_path / "none.ckpt")
    for name in ("cut.ckpt", "none.ckpt", "nowhere.ckpt"):
        with pytest.raises(UserError):
            read_lightning(tmp_path / name)


def test_a_damaged_description_is_refused(tmp_path):
    """Fails if a size that is none, or a task that is none, builds a model."""
    model = meter()
    convert_meter(checkpoint(tmp_path / "a.ckpt", model.state_dict()), tmp_path / "m", model.config)
    path = tmp_path / "m" / "meter.json"
    content = read_json(path)
    for change in ({"width": 10**9}, {"heads": 5}, {"task": "x"}, {"skip": [24]}, {"dropout": None}, {"folded": 1}):
        path.write_text(__import__("json").dumps(content | {"config": content["config"] | change}))
        with pytest.raises(UserError):
            read_meter_about(tmp_path / "m")
