"""Checkpoints: the authors' releases both ways, SAM and BERT to start from, broken files refused (D3, D10)."""

import json
import os
import pickle

import pytest
import torch
from dit_sam_tiny import run, tiny_model
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from dit_sam.checkpoints.convert import convert, convert_back
from dit_sam.checkpoints.keys import to_official, unused_shapes
from dit_sam.checkpoints.load import from_sam
from dit_sam.model import DITSam
from tenfold import UserError


class Evil:
    def __reduce__(self):
        return os.system, ("false",)


def write_release(path, model, prefix="module.", **more):
    """What the authors' trainer saves: names of several GPUs, optimiser, rate and epoch."""
    state = to_official(model.state_dict())
    state |= {name: torch.randn(shape) for name, shape in unused_shapes(model.config).items()}
    content = {"epoch": 7, "state_dict": {prefix + name: value for name, value in state.items()}, "lr": 1e-6}
    content |= {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "scheduler": {"last_epoch": 3}, **more}
    torch.save(content, path)
    return state


def write_dims(path, model):
    path.write_text(json.dumps(model.config.to_dict()))
    return path


@pytest.fixture()
def released(tiny, tmp_path):
    """A release, its dimensions, its words and its tensors."""
    state = write_release(tmp_path / "seg_best.pth", tiny)
    tiny.vocabulary.save(tmp_path / "vocab.txt")
    return tmp_path, state


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"mlp_ratio": -1},
        {"mlp_ratio": float("inf")},
        {"mlp_ratio": float("nan")},
        {"mlp_ratio": 1e-9},
        {"width": 10**30},
        {"depth": 10**6},
    ],
)
def test_dimensions_of_no_model_are_one_line(content, tiny, released):
    """Fails if they reach torch: a negative size, a size beyond all memory, or a million blocks."""
    place, _ = released
    values = tiny.config.to_dict() | content if isinstance(content, dict) else content
    (place / "dims.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        convert(
            place / "seg_best.pth",
            place / "model",
            bert=place / "vocab.txt",
            variant="layer_wise",
            dims=place / "dims.json",
        )
    assert "\n" not in str(caught.value) and not (place / "model").exists()


def test_a_release_there_and_back_is_the_same(tiny, released):
    """Fails if a name, a bit or a weight that nothing uses got lost on the way."""
    place, state = released
    options = {"bert": place / "vocab.txt", "variant": "layer_wise", "dims": write_dims(place / "dims.json", tiny)}
    convert(place / "seg_best.pth", place / "model", **options)
    model = DITSam.from_pretrained(place / "model")
    assert model.config == tiny.config and model.vocabulary.words == tiny.vocabulary.words
    assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in model.state_dict().items())
    convert_back(place / "model", place / "again.pth")
    again = torch.load(place / "again.pth", weights_only=True)["state_dict"]
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "variant", ["e2e_token", "token_layer_wise", "cross_attention", "cross_attention_ffn", "default"]
)
def test_the_variant_and_dimensions_are_read_from_the_weights(variant, tmp_path):
    """Fails if a variant were guessed, or a dimension that shapes tell were wrong."""
    from dit_sam.checkpoints.release import read_release, release_config

    model = tiny_model(variant, text_length=20, text_positions=20)
    write_release(tmp_path / "r.pth", model, prefix="")
    found = release_config(read_release(tmp_path / "r.pth"), None, "r.pth")
    assert found.variant == variant
    for name in ("width", "depth", "patch_size", "native_size", "decoder_depth", "decoder_mlp", "text_width", "words"):
        assert getattr(found, name) == getattr(model.config, name), name


def test_layer_wise_and_e2e_must_be_said(released):
    """Fails if one of two variants with equal weights were chosen in silence."""
    place, _ = released
    code, _, line = run("convert", place / "seg_best.pth", place / "m", "--bert", place / "vocab.txt")
    assert code == 2 and "layer_wise or e2e" in line
    assert not (place / "m").exists()


def broken(place):
    """Name -> a file that is no release."""
    whole = (place / "seg_best.pth").read_bytes()
    content = torch.load(place / "seg_best.pth", weights_only=True)
    state = content["state_dict"]
    some = next(name for name in state if "blocks.1" in name)

    def changed(**values):
        return {**content, "state_dict": {**state, **values}}

    yield "truncated", whole[: len(whole) // 2]
    yield "empty", b""
    yield "a call", pickle.dumps({"state_dict": Evil()})
    for name, value in (
        ("missing", {**content, "state_dict": {k: v for k, v in state.items() if k != some}}),
        ("another", changed(**{"module.visual_encoder.extra": torch.zeros(2)})),
        ("shape", changed(**{some: torch.zeros(3)})),
        ("nan", changed(**{some: torch.full_like(state[some], float("nan"))})),
        ("no tensors", {"state_dict": {"a": 1}}),
        ("another model", {"state_dict": {"a": torch.zeros(2)}}),
    ):
        torch.save(value, place / "made.pth")
        yield name, (place / "made.pth").read_bytes()


def test_broken_releases_are_refused(tiny, released):
    """Fails if one were converted, said a traceback, or left a folder behind."""
    place, _ = released
    dims = write_dims(place / "dims.json", tiny)
    options = ("--bert", place / "vocab.txt", "--variant", "layer_wise", "--dims", dims)
    for name, content in broken(place):
        (place / "broken.pth").write_bytes(content)
        code, _, line = run("convert", place / "broken.pth", place / "out", *options)
        assert code == 2 and line and "\n" not in line, name
        assert not (place / "out").exists(), name


def test_broken_folders_are_refused(tiny_folder, tmp_path):
    """Fails if a folder with a torn, foreign or non-finite file loaded."""
    import shutil

    def copy(name):
        target = tmp_path / name
        shutil.copytree(tiny_folder, target)
        return target

    torn = copy("torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    foreign = copy("foreign")
    (foreign / "config.json").write_text('{"format": "other"}')
    unknown = copy("unknown")
    values = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**values, "widht": 3}))
    typed = copy("typed")
    (typed / "config.json").write_text(json.dumps({**values, "width": "32"}))
    words = copy("words")
    (words / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    nan = copy("nan")
    state = load_file(nan / "model.safetensors")
    state["text_proj.bias"][0] = float("nan")
    save_file(state, nan / "model.safetensors")
    for folder in (torn, foreign, unknown, typed, words, nan, tmp_path / "nowhere"):
        with pytest.raises(UserError):
            DITSam.from_pretrained(folder)


def small_sam(config):
    """segment-anything's own classes, as its builders put them together, in the mini model's dimensions."""
    native = config.native_size // config.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=config.native_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            out_chans=config.prompt_width,
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            config.prompt_width, (native, native), (config.native_size,) * 2, config.mask_channels
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=config.prompt_width,
            transformer=TwoWayTransformer(2, config.prompt_width, config.decoder_heads, config.decoder_mlp),
            iou_head_hidden_dim=config.iou_width,
        ),
    )


def test_sam_and_bert_become_a_model_to_train(tmp_path):
    """Fails if a weight of SAM or BERT were not taken key by key, or text mattered before training."""
    config = tiny_model().config.changed(window_size=3)
    sam = small_sam(config)
    bert = tmp_path / "bert"
    bert.mkdir()
    tiny = tiny_model()
    tiny.vocabulary.save(bert / "vocab.txt")
    save_file(
        {f"bert.{k}": v.contiguous() for k, v in tiny.text_encoder.state_dict().items()}, bert / "model.safetensors"
    )
    model = from_sam(sam, bert, config)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in sam.state_dict().items())
    encoded = model.vocabulary.encode(["the square", "the red object"], config.text_length)
    with torch.no_grad():
        features = model.encode_text(encoded.ids, encoded.mask).features
        embedding = model.image_encoder(torch.randn(1, 3, 48, 48).expand(2, -1, -1, -1), features)
    assert torch.equal(embedding[0], embedding[1])
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    assert from_sam(tmp_path / "sam.pth", bert, config).config == config
    with pytest.raises(UserError, match=r"weights of another shape|weights missing"):
        from_sam(sam, bert, config.changed(window_size=6))


def test_a_model_card_says_what_it_is(tiny_folder):
    """Fails if licence, tags or the training were missing from the card."""
    card = (tiny_folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0") and "Trained on: nothing." in card and "- layer_wise" in card
