"""LaVIN from the authors' checkpoint, LLaMA in both layouts and CLIP; ScienceQA and a file of predictions scored."""

import argparse
import json

import pytest
import torch
from lavin_fixtures import TINY, clip, frozen, lavin, meta, prompts
from safetensors.torch import save_file

from eas.checkpoints import lavin_keys
from eas.checkpoints.lavin import convert_lavin, open_lavin, read_lavin_about
from eas.commands.app import main
from eas.lavin_decoding import generate
from tenfold import UserError
from tenfold.data import write
from tenfold.data.formats.scienceqa import read_scienceqa
from tenfold.data.sentencepieces import sentencepiece_model
from tenfold.runs import read_json
from tenfold.testing import commands


@pytest.fixture(scope="module")
def model():
    return lavin(both=True)


def adapters(model, path, change=lambda state: state):
    """As the authors' training writes it: under DDP's names, with its settings and optimiser beside it."""
    state = {}
    for name, value in model.trained():
        shape = lavin_keys.official_shape(name, tuple(value.shape))
        state["module." + lavin_keys.to_official(name)] = value.detach().reshape(shape).clone()
    torch.save({"model": change(state), "optimizer": {}, "epoch": 19, "args": argparse.Namespace(lr=1.0)}, path)
    return path


def permuted(weight, heads=2):
    """Rows as transformers' conversion of LLaMA lays them: neighbours become halves."""
    out, width = weight.shape
    return weight.view(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def hf(model, folder):
    folder.mkdir()
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    names = {
        "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    top = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    state = {}
    for name, value in frozen(model).items():
        stem = name.removesuffix(".weight")
        if stem in top:
            state[f"{top[stem]}.weight"] = value
            continue
        _, layer, part = stem.split(".", 2)
        turned = permuted(value) if part in ("attention.wq", "attention.wk") else value
        state[f"model.layers.{layer}.{names[part]}.weight"] = turned.contiguous()
    save_file(state, folder / "model.safetensors")
    return folder


def test_all_layouts_of_llama_give_the_same_model(model, tmp_path):
    """Fails if a part is joined on the wrong axis, rotary rows stay turned, or a PIA of a kept layer is taken."""
    source, tower = adapters(model, tmp_path / "checkpoint-19.pth"), clip(model, tmp_path / "clip")
    bases = [meta(model, tmp_path / "one", 1), meta(model, tmp_path / "two", 2), hf(model, tmp_path / "hf")]
    asked, images = prompts(2)
    expected = generate(model, asked, images, 3)
    for number, base in enumerate(bases):
        made = convert_lavin(source, tmp_path / f"m{number}", base=base, tower=tower, skip=(3, 1))
        assert made.skipped == ("argparse.Namespace",) and made.config.skip == (1, 3)
        opened, prompt_format = open_lavin(tmp_path / f"m{number}")
        assert prompt_format == "QCM-ALE" and made.trained == sum(value.numel() for _, value in opened.trained())
        assert torch.equal(generate(opened, asked, images, 3).logits, expected.logits)
        assert not [name for name in opened.state_dict() if name.startswith("layers.1.attention.")]


def test_clip_of_transformers_is_the_same_tower(model):
    """Fails if query, key and value are joined in another order, or a norm goes elsewhere."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    theirs = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4, hidden_act="quick_gelu")).eval()
    state = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in theirs.state_dict().items()}
    found = {name.removeprefix(lavin_keys.VISUAL): value for name, value in lavin_keys.from_hf_clip(state).items()}
    from eas.tower import Tower

    tower = Tower(16, 4, 2, 4, 8)
    tower.load_state_dict(found)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = theirs(pixels, output_hidden_states=True).hidden_states
        assert torch.allclose(tower.classes(pixels, 2)[:, 1], hidden[4][:, 0], atol=1e-4)
        assert torch.allclose(tower.classes(pixels, 2)[:, 0], hidden[2][:, 0], atol=1e-4)


def test_what_does_not_fit_is_named(model, tmp_path):
    """Fails if a missing weight of the method, a stranger or a wrong base gives a model, or half a folder stays."""
    tower, base = clip(model, tmp_path / "clip"), meta(model, tmp_path / "one", 1)
    one = "module.layers.2.replaced_adapter.conv_C.weight"
    broken = (
        (lambda state: {name: value for name, value in state.items() if name != one}, "layers.2.pia.C.weight"),
        (lambda state: state | {"module.layers.0.attention.wq.lora": torch.ones(1)}, "no weight of LaVIN-EAS"),
        (lambda state: state | {one: torch.ones(2, 3, 1)}, "another shape"),
    )
    for number, (change, told) in enumerate(broken):
        path = adapters(model, tmp_path / f"{number}.pth", change)
        with pytest.raises(UserError, match=told):
            convert_lavin(path, tmp_path / "m", base=base, tower=tower, skip=(1,))
    good = adapters(model, tmp_path / "good.pth")
    for wrong in (tower, tmp_path / "nowhere"):
        with pytest.raises(UserError):
            convert_lavin(good, tmp_path / "m", base=wrong, tower=tower, skip=(1,))
    with pytest.raises(UserError, match="a skip list"):
        convert_lavin(good, tmp_path / "m", base=base, tower=tower, skip=(9,))
    told = commands.run(main, "convert", str(base), str(tmp_path / "m"), "--tower", str(tower), "--skip", "1")
    assert told.code == 2 and "a LLaMA is taken as it is" in told.err  # a list belongs to a checkpoint, or a tuning
    assert not (tmp_path / "m").exists()


def converted(model, tmp_path):
    source = adapters(model, tmp_path / "checkpoint-19.pth")
    tower, base = clip(model, tmp_path / "clip"), meta(model, tmp_path / "llama", 1)
    told = commands.run(
        main, "convert", str(source), str(tmp_path / "m"), "--tower", str(tower), "--base", str(base), "--skip", "1,3"
    )
    assert told.code == 0 and "argparse.Namespace" in told.out, told
    return tmp_path / "m"


def test_scienceqa_is_asked_and_a_batch_changes_no_answer(model, tmp_path):
    """Fails if the folder's host is not seen, a batch or folding moves an answer, or a wrong host is taken."""
    folder = converted(model, tmp_path)
    write.write_scienceqa(tmp_path / "d", 0, 20, 16)
    base = ("eval", str(folder), "--benchmark", "scienceqa", "--data", str(tmp_path / "d"), "--limit", "2")
    texts = []
    for number, more in enumerate((("--batch", "1"), ("--batch", "2"), ("--batch", "1", "--folded"))):
        told = commands.run(main, *base, *more, "--output", str(tmp_path / f"o{number}"))
        assert told.code == 0 and "ScienceQA on LaVIN" in told.out, told
        lines = (tmp_path / f"o{number}" / "predictions.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["text"] for line in lines])
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 2
    metrics = read_json(tmp_path / "o0" / "metrics.json")
    assert metrics["cache_share"] == 0.5 and metrics["semantics"] == "consistent" and "as released" in metrics["scores"]
    for more, words in ((("--host", "meter"), "its folder says so"), (("--folded",), "--batch 1")):
        told = commands.run(main, *base, *more, "--output", str(tmp_path / "no"))
        assert told.code == 2 and words in told.err and not (tmp_path / "no").exists()
    (folder / "lavin.json").write_text((folder / "lavin.json").read_text().replace('"width": 16', '"width": 1e9'))
    with pytest.raises(UserError, match="width"):
        read_lavin_about(folder)


def test_the_authors_predictions_are_scored_without_a_model(tmp_path):
    """Fails if a prediction is joined with another question, or a file that lacks one passes."""
    write.write_scienceqa(tmp_path / "d", 0, 40, 16)
    samples = read_scienceqa(tmp_path / "d", "test")
    chosen = {one.id: one.answer if at % 2 else (one.answer + 1) % 5 for at, one in enumerate(samples)}
    (tmp_path / "preds.json").write_text(json.dumps(dict(reversed(chosen.items()))))
    base = ("eval", "--benchmark", "scienceqa", "--data", str(tmp_path / "d"))
    told = commands.run(main, *base, "--predictions", str(tmp_path / "preds.json"), "--output", str(tmp_path / "o"))
    assert told.code == 0, told
    scores = read_json(tmp_path / "o" / "metrics.json")["scores"]
    assert scores["average"] == pytest.approx(100 * (len(samples) // 2) / len(samples)) and scores["unread"] == 0
    chosen.popitem()
    (tmp_path / "less.json").write_text(json.dumps(chosen))
    told = commands.run(main, *base, "--predictions", str(tmp_path / "less.json"), "--output", str(tmp_path / "p"))
    assert told.code == 2 and "1 questions without prediction" in told.err and not (tmp_path / "p").exists()


def test_the_sizes_of_the_fixture_are_those_of_a_folder():
    """Fails if a size of LaVIN is not written into its folder."""
    assert set(TINY) <= set(lavin().config.__dataclass_fields__)
