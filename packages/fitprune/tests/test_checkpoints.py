"""Official LLaVA-1.5 releases and transformers' layout: names, shapes, numbers, and whole folders both ways."""

import json

import pytest
import torch
from fitprune_releases import OFFICIAL_KEYS, RELEASE, TOWER, VISION, WORDS, read_weights, tiny_weights, write_release
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from fitprune.checkpoints.keys import convert, official_shapes, to_official, to_transformers
from tenfold.data import mini_host, miniworld


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("official") / "llava")


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    output = tmp_path_factory.mktemp("hf") / "llava-hf"
    return convert(release, output, to="hf", shard_bytes=20_000)


def full_size_model():
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
        )
    )
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def golden_shapes():
    shapes = {}
    for pattern, shape in OFFICIAL_KEYS["host_keys_pattern"].items():
        layers = range(32) if "{0..31}" in pattern else (0,)
        shapes |= {pattern.replace("{0..31}", str(layer)): shape for layer in layers}
    return shapes


def test_the_full_size_model_has_exactly_the_official_keys():
    """Fails if a name, a shape or a count differs: none missing, none unexpected at 7B.

    The vision tower's 303,507,456 are all parameters of transformers' CLIP vision model: embeddings, 24 layers, the
    norms before and after them (the one after feeds no visual token); neither the text half nor the projection.
    """
    model = full_size_model()
    official = to_official(model.state_dict())
    tower = {name for name in official if name.startswith(TOWER)}
    shapes = {name: list(tensor.shape) for name, tensor in official.items() if name not in tower}
    assert shapes == golden_shapes()

    def count(names):
        return sum(official[name].numel() for name in names)

    projector = {name for name in official if "mm_projector" in name}
    assert count(official.keys() - tower - projector) == OFFICIAL_KEYS["parameters"]["language_model"] == 6_738_415_616
    assert count(projector) == OFFICIAL_KEYS["parameters"]["mm_projector"] == 20_979_712
    assert count(tower) == OFFICIAL_KEYS["parameters"]["clip_vit_l_14_336_vision_model"] == 303_507_456
    assert count(official) == OFFICIAL_KEYS["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert OFFICIAL_KEYS["method_specific"] == {}


def test_a_full_size_release_loads_into_transformers():
    """Fails if one official key has no place in the model, or the model a key that the release and CLIP do not fill."""
    model = full_size_model()
    weights = {name: torch.empty(shape, device="meta") for name, shape in golden_shapes().items()}
    weights |= {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.empty(64, device="meta") for layer in range(32)
    }
    missing, unexpected = model.load_state_dict(to_transformers(weights), strict=False, assign=True)
    assert unexpected == []
    assert all(name.startswith("model.vision_tower.") for name in missing)
    assert len(missing) == 391  # 5 of the embeddings and norms before, 24 x 16 of the layers, 2 of the norm after


def test_names_come_back():
    weights = tiny_weights()
    assert to_official(to_transformers(weights)).keys() == weights.keys()


def test_the_model_computes_from_official_weights_what_its_own_names_compute(release, converted):
    """Fails if two weights of equal shape are swapped: q for k, gate for up, one norm for the other."""
    model = AutoModelForImageTextToText.from_pretrained(converted.output, dtype=torch.float32, local_files_only=True)
    weights = {name: tensor.float() for name, tensor in read_weights(release).items()}
    hidden = weights["model.embed_tokens.weight"][torch.tensor([[1, 7, 9, 30, 4]])]
    expected = llama_by_hand(weights, hidden)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 7, 9, 30, 4]])).logits[..., :WORDS]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def llama_by_hand(weights, hidden, heads=4, layers=3):
    """Logits of a Llama decoder under official names, written out. ``hidden``: [1, tokens, width]."""

    def norm(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[name]

    tokens, width = hidden.shape[1], hidden.shape[2] // heads
    angles = torch.outer(torch.arange(tokens).float(), 10000.0 ** -(torch.arange(0, width, 2).float() / width))
    cos, sin = (part.repeat(1, 2) for part in (angles.cos(), angles.sin()))

    def rotated(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    mask = torch.full((tokens, tokens), float("-inf")).triu(1)
    for layer in range(layers):
        name = f"model.layers.{layer}."
        normed = norm(hidden, f"{name}input_layernorm.weight")
        q, k, v = (
            (normed @ weights[f"{name}self_attn.{part}_proj.weight"].T).view(1, tokens, heads, width).transpose(1, 2)
            for part in "qkv"
        )
        attended = (rotated(q) @ rotated(k).transpose(2, 3) / width**0.5 + mask).softmax(-1) @ v
        attended = attended.transpose(1, 2).reshape(1, tokens, heads * width)
        hidden = hidden + attended @ weights[f"{name}self_attn.o_proj.weight"].T
        normed = norm(hidden, f"{name}post_attention_layernorm.weight")
        gate, up = (normed @ weights[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        hidden = hidden + torch.nn.functional.silu(gate) * up @ weights[f"{name}mlp.down_proj.weight"].T
    return norm(hidden, "model.norm.weight") @ weights["lm_head.weight"].T


def test_there_and_back_is_bit_identical(release, converted, tmp_path):
    """Fails if a weight changes by a bit or its type, one is lost, or the vocabulary does not come back."""
    back = convert(converted.output, tmp_path / "back", to="official")
    before, after = read_weights(release), read_weights(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: config[name] for name in RELEASE} == RELEASE
    assert converted.words == (WORDS, 128) and back.words == (128, WORDS)
    assert (back.language_model, back.projector, back.vision_tower) == (
        converted.language_model,
        converted.projector,
        converted.vision_tower,
    )
    assert sum(tensor.numel() for tensor in before.values()) == (
        converted.language_model + converted.projector + converted.vision_tower
    )


def test_and_there_again_gives_the_same_folder(converted, tmp_path):
    convert(converted.output, tmp_path / "back", to="official")
    convert(tmp_path / "back", tmp_path / "again", to="hf", shard_bytes=20_000)
    before = {path.name: path.read_bytes() for path in converted.output.iterdir()}
    after = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert before == after


def test_a_converted_release_answers_about_an_image(converted):
    """Fails if config, weights, tokenizer and processor do not fit together."""
    model, loading = AutoModelForImageTextToText.from_pretrained(
        converted.output, output_loading_info=True, local_files_only=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.dtype == torch.float16
    processor = AutoProcessor.from_pretrained(converted.output, backend="pil", local_files_only=True)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what shape is it"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (40, 20), "red"), text=text, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == 1 and (inputs["input_ids"] == WORDS).sum() == 16
    ids = model.float().generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 4


def test_images_are_padded_as_in_the_official_evaluation(converted):
    """Fails if a wide image is cropped: the release says image_aspect_ratio pad, with CLIP's mean colour."""
    processor = AutoProcessor.from_pretrained(converted.output, backend="pil", local_files_only=True)
    pixels = processor.image_processor(Image.new("RGB", (32, 16), "white"), return_tensors="pt")["pixel_values"][0]
    # The mean, cut to a whole grey level, normalises to less than one level below zero.
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0].min() > -1 / 255 / 0.26 and pixels[:, 0].max() <= 0 and pixels[:, 8].min() > 1


def test_the_prompt_is_the_official_template(converted):
    processor = AutoProcessor.from_pretrained(converted.output, backend="pil", local_files_only=True)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert processor.apply_chat_template(turn, add_generation_prompt=True) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT:"
    )


def test_new_words_are_never_the_answer(tmp_path):
    """Fails if the rows for <image>, <pad> and the filling are zeros, which win where all other logits are negative."""
    weights = tiny_weights()
    weights["lm_head.weight"] = weights["lm_head.weight"] - 4
    convert(write_release(tmp_path / "release", weights), tmp_path / "hf", to="hf")
    head = read_weights(tmp_path / "hf")["language_model.lm_head.weight"].float()
    hidden = 1 + 0.1 * torch.randn(500, 32, generator=torch.Generator().manual_seed(1))
    logits = hidden @ head.T
    assert logits.shape == (500, 128) and logits[:, :WORDS].max() < 0
    assert logits.argmax(1).max() < WORDS


def test_a_vocabulary_with_room_is_left_alone(tmp_path):
    """128 rows and 70 words: <image> takes row 70. Fails if the way back takes the other rows for filling."""
    weights = tiny_weights()
    generator = torch.Generator().manual_seed(2)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.randn(128, 32, generator=generator).half()
    release = write_release(tmp_path / "release", weights, {"vocab_size": 128})
    assert convert(release, tmp_path / "hf", to="hf").words == (128, 128)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["image_token_index"] == WORDS
    assert convert(tmp_path / "hf", tmp_path / "back", to="official").words == (128, 128)
    back = read_weights(tmp_path / "back")
    assert all(torch.equal(tensor, back[name]) for name, tensor in weights.items())


def test_a_release_without_tokenizer_becomes_a_model_without_processor(tmp_path):
    release = write_release(tmp_path / "release")
    (release / "tokenizer.json").unlink()
    convert(release, tmp_path / "hf", to="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["image_token_index"], config["text_config"]["vocab_size"]) == (WORDS, 128)
    assert not (tmp_path / "hf" / "processor_config.json").exists()


def test_the_tokenizer_comes_back_without_the_added_words(release, converted, tmp_path):
    """Fails if <image> or <pad> stays, which the authors' code would count as words."""
    convert(converted.output, tmp_path / "back", to="official")
    tokens = [
        Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (release, converted.output, tmp_path / "back")
    ]
    assert [tokenizer.get_vocab_size() for tokenizer in tokens] == [WORDS, WORDS + 2, WORDS]
    assert tokens[0].get_vocab() == tokens[2].get_vocab()
    text = "USER : what shape is it ASSISTANT :"
    assert tokens[0].encode(text).ids == tokens[2].encode(text).ids


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_shards_old_buffers_and_a_separate_tower_are_read(tmp_path, converted, legacy, monkeypatch):
    """Fails if a .bin release with rotary buffers, with its tower in a CLIP checkpoint, converts to anything else."""
    weights = tiny_weights()
    clip = {name.removeprefix(TOWER): weights.pop(name) for name in list(weights) if name.startswith(TOWER)}
    weights |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    clip = {f"vision_model.{name}": tensor for name, tensor in clip.items()}
    clip |= {"vision_model.embeddings.position_ids": torch.arange(17)[None], "logit_scale": torch.ones(())}
    clip |= {"text_model.final_layer_norm.weight": torch.ones(8), "visual_projection.weight": torch.ones(8, 16)}
    tower = tmp_path / "clip"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION}))
    old = {"_use_new_zipfile_serialization": not legacy}
    torch.save(clip, tower / "pytorch_model.bin", **old)
    release = write_release(tmp_path / "release", weights, pickled=True, vision_config=False)
    if legacy:
        for path in release.glob("*.bin"):
            torch.save(torch.load(path, weights_only=True), path, **old)
    result = convert(release, tmp_path / "out", to="hf", vision_tower=tower)
    expected, found = read_weights(converted.output), read_weights(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert len(result.left_out) == 4


def test_a_model_saved_by_transformers_becomes_the_release(converted, release, tmp_path):
    """save_pretrained spells the tower's names differently from llava-hf's files; both are read."""
    model = AutoModelForImageTextToText.from_pretrained(converted.output, local_files_only=True)
    model.save_pretrained(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "back", to="official")
    before, after = read_weights(release), read_weights(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_port_of_llava_hf_loses_its_filling(tmp_path):
    """Its config does not say how many words are official; 128 rows with <image> at 70 are 70 words, filled to 64."""
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
        ),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=70,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "port")
    result = convert(tmp_path / "port", tmp_path / "out", to="official")
    assert result.words == (128, 70)
    assert read_weights(tmp_path / "out")["lm_head.weight"].shape == (70, 32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 70


def test_the_mini_host_answers_alike_after_a_round_trip(tmp_path):
    """A tied head, a vocabulary that holds <image> among its words, and features of the last layer survive."""
    convert(mini_host.path(), tmp_path / "official", to="official")
    convert(tmp_path / "official", tmp_path / "hf", to="hf")
    image = miniworld.render(miniworld.scene(seed=0, index=3), size=48)
    answers = []
    for folder in (mini_host.path(), tmp_path / "hf"):
        model, processor = mini_host.load(folder)
        inputs = processor(images=image, text=mini_host.prompt("What shape is the red object?"), return_tensors="pt")
        with torch.no_grad():
            answers.append(model(**inputs).logits)
    assert torch.equal(*answers)


def test_official_shapes_follow_the_vocabulary():
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
        ),
        vision_config=CLIPVisionConfig(**VISION),
    )
    assert official_shapes(config)["lm_head.weight"] == (128, 32)
    assert official_shapes(config, 70)["model.embed_tokens.weight"] == (70, 32)
