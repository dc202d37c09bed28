"""Official LLaVA-1.5 releases and transformers' layout: names, shapes, numbers, and whole folders both ways."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from fitprune.checkpoints import convert, official_shapes, to_official, to_transformers
from fitprune.weight_files import WeightFiles
from tenfold import UserError
from tenfold.data import mini_host, miniworld

OFFICIAL_KEYS = json.loads((Path(__file__).parent / "goldens" / "official_keys.json").read_text())
WORDS = 70
TOWER = "model.vision_tower.vision_tower.vision_model."
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
RELEASE = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float16",
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "vision_tower",
    "mm_use_im_start_end": False,
    "use_mm_proj": True,
}


def tiny_weights():
    """Random fp16 weights under official names; the names come from the golden file and CLIP's paper, not from the
    key map under test."""
    generator = torch.Generator().manual_seed(0)
    d, m, v, vm = 32, 48, 16, 24
    sizes = {32000: WORDS, 4096: d, 11008: m, 1024: v}
    shapes = {}
    for pattern, shape in OFFICIAL_KEYS["host_keys_pattern"].items():
        for layer in range(3) if "{0..31}" in pattern else (0,):
            shapes[pattern.replace("{0..31}", str(layer))] = [sizes[size] for size in shape]
    tower = {
        "embeddings.class_embedding": [v],
        "embeddings.patch_embedding.weight": [v, 3, 4, 4],
        "embeddings.position_embedding.weight": [17, v],
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        tower |= {f"{norm}.weight": [v], f"{norm}.bias": [v]}
    for layer in range(2):
        block = f"encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            tower |= {f"{block}self_attn.{name}_proj.weight": [v, v], f"{block}self_attn.{name}_proj.bias": [v]}
        for name in ("layer_norm1", "layer_norm2"):
            tower |= {f"{block}{name}.weight": [v], f"{block}{name}.bias": [v]}
        tower |= {f"{block}mlp.fc1.weight": [vm, v], f"{block}mlp.fc1.bias": [vm]}
        tower |= {f"{block}mlp.fc2.weight": [v, vm], f"{block}mlp.fc2.bias": [v]}
    shapes |= {TOWER + name: shape for name, shape in tower.items()}
    return {name: (torch.randn(shape, generator=generator) * 0.3).half() for name, shape in shapes.items()}


def write_release(folder, weights=None, config=None, shards=2, pickled=False, vision_config=True):
    """An official release: config, numbered shards with their index, a tokenizer with the words and nothing else."""
    weights = tiny_weights() if weights is None else weights
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RELEASE | (config or {})))
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    save = torch.save if pickled else save_file
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        shard = names[number::shards]
        save({key: weights[key] for key in shard}, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if vision_config:
        (folder / "vision_tower").mkdir()
        (folder / "vision_tower" / "config.json").write_text(json.dumps(VISION))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    words = ["<unk>", "<s>", "</s>", "USER", "ASSISTANT", ":", "what", "shape", "is", "it"]
    words += [f"word{number}" for number in range(WORDS - len(words))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    inner.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>", "pad_token": "<unk>"}))


def read_weights(folder):
    with WeightFiles(folder) as weights:
        return {name: tensor.read().clone() for name, tensor in weights.tensors.items()}


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

    The vision tower's 303,507,456 are all parameters of transformers' CLIP vision model: embeddings, 24 layers, the norms
    before and after them (the one after feeds no visual token); neither the text half nor the projection.
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
    from PIL import Image
    from transformers import AutoProcessor

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
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(converted.output, backend="pil", local_files_only=True)
    pixels = processor.image_processor(Image.new("RGB", (32, 16), "white"), return_tensors="pt")["pixel_values"][0]
    # The mean, cut to a whole grey level, normalises to less than one level below zero.
    assert pixels.shape == (3, 16, 16)
    assert -1 / 255 / 0.26 < pixels[:, 0].min() and pixels[:, 0].max() <= 0 and pixels[:, 8].min() > 1


def test_the_prompt_is_the_official_template(converted):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(converted.output, backend="pil", local_files_only=True)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert processor.apply_chat_template(turn, add_generation_prompt=True) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT:"
    )


def test_new_words_are_never_the_answer(release, converted):
    """Fails if the rows for <image>, <pad> and the filling are zeros, which win where all other logits are negative."""
    head = read_weights(converted.output)["language_model.lm_head.weight"].float()
    assert head.shape[0] == 128
    hidden = torch.randn(500, 32, generator=torch.Generator().manual_seed(1))
    hidden -= 50 * head[:WORDS].mean(0)  # where the mean logit is far below zero
    assert (hidden @ head.T).argmax(1).max() < WORDS


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


def broken(tmp_path, what):
    """A release with one thing wrong, and what the message must say."""
    weights, config = tiny_weights(), {}
    if what == "missing weight":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif what == "unexpected weight":
        weights["model.layers.3.input_layernorm.weight"] = torch.ones(32)
    elif what == "foreign weight":
        weights["model.image_newline"] = torch.ones(32)
    elif what == "wrong shape":
        weights["model.mm_projector.0.weight"] = torch.ones(32, 8)
    elif what == "integer weights":
        weights["model.norm.weight"] = torch.ones(32, dtype=torch.uint8)
    elif what == "another projector":
        config = {"mm_projector_type": "linear"}
    elif what == "another tower":
        config = {"mm_vision_tower": "google/siglip-so400m-patch14-384"}
    elif what == "tiles":
        config = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}
    release = write_release(tmp_path / "release", weights, config)
    shard = release / "model-00001-of-00002.safetensors"
    index = release / "model.safetensors.index.json"
    if what == "missing shard":
        shard.unlink()
    elif what == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif what == "no safetensors":
        shard.write_bytes(b"\x89PNG....")
    elif what == "broken index":
        index.write_text('{"weight_map": {"a": ')
    elif what == "index without map":
        index.write_text("[]")
    elif what == "index that points outside":
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../secret.safetensors"}}))
    elif what == "promised weight":
        content = json.loads(index.read_text())
        content["weight_map"]["model.layers.9.x"] = shard.name
        index.write_text(json.dumps(content))
    elif what == "weight twice":
        save_file(load_file(release / "model-00002-of-00002.safetensors"), shard)
    elif what == "no weights":
        for path in release.glob("model*"):
            path.unlink()
    elif what == "no config":
        (release / "config.json").unlink()
    elif what == "broken config":
        (release / "config.json").write_text("{")
    elif what == "transformers' layout":
        (release / "config.json").write_text('{"model_type": "llava", "text_config": {}}')
    elif what == "broken tokenizer":
        (release / "tokenizer.json").write_text('{"version": ')
    elif what == "too many words":
        (release / "config.json").write_text(json.dumps(RELEASE | {"vocab_size": WORDS - 1}))
    return release


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing weight", "1 weights missing, first model.layers.1.mlp.up_proj.weight"),
        ("unexpected weight", "1 weights too many, first model.layers.3.input_layernorm.weight"),
        ("foreign weight", "a weight that LLaVA-1.5 does not have: model.image_newline"),
        ("wrong shape", "model.mm_projector.0.weight is [32, 8]"),
        ("integer weights", "weights of type U8"),
        ("another projector", "mm_projector_type: Input should be 'mlp2x_gelu'"),
        ("another tower", "vision tower google/siglip-so400m-patch14-384"),
        ("tiles", "image_aspect_ratio"),
        ("missing shard", "1 of 2 shards missing"),
        ("truncated shard", "broken or truncated"),
        ("no safetensors", "broken or truncated"),
        ("broken index", "broken JSON"),
        ("index without map", "no weight_map"),
        ("index that points outside", "lm_head.weight is in '../secret.safetensors'"),
        ("promised weight", "no weight model.layers.9.x"),
        ("weight twice", "is in two shards"),
        ("no weights", "no weights"),
        ("no config", "no such file"),
        ("broken config", "broken JSON"),
        ("transformers' layout", "not an official release (model_type 'llava')"),
        ("broken tokenizer", "broken JSON"),
        ("too many words", "70 words"),
    ],
)
def test_a_broken_release_is_refused_in_one_line(tmp_path, what, message):
    """Fails if the message does not say what is wrong, or if anything is left in the output's place."""
    release = broken(tmp_path, what)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert(release, tmp_path / "out", to="hf")
    assert ("\n" not in str(caught.value) and str(release) in str(caught.value)) or what == "foreign weight"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


@pytest.mark.parametrize("content", [b"", b"not a pickle", None], ids=["empty", "text", "truncated"])
def test_a_broken_pickle_is_refused(tmp_path, content):
    release = write_release(tmp_path / "release", pickled=True)
    shard = release / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-200] if content is None else content)
    with pytest.raises(UserError, match="broken, truncated or no plain weights"):
        convert(release, tmp_path / "out", to="hf")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """Fails if weights are unpickled without weights_only: the file would then create the marker."""
    marker = tmp_path / "marker"

    class Runs:
        def __reduce__(self):
            return (Path.touch, (marker,))

    release = write_release(tmp_path / "release", pickled=True)
    torch.save({"lm_head.weight": Runs()}, release / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match="no plain weights"):
        convert(release, tmp_path / "out", to="hf")
    assert not marker.exists()


def test_a_release_without_its_tower_says_what_it_needs(tmp_path):
    weights = {name: tensor for name, tensor in tiny_weights().items() if not name.startswith(TOWER)}
    release = write_release(tmp_path / "release", weights)
    with pytest.raises(UserError, match=r"no vision tower inside.*--vision-tower"):
        convert(release, tmp_path / "out", to="hf")


def test_an_existing_output_is_left_alone(release, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="already exists"):
        convert(release, tmp_path / "out", to="hf")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_wrong_direction_is_named(release, tmp_path):
    with pytest.raises(UserError, match="an official release"):
        convert(release, tmp_path / "out", to="official")
    with pytest.raises(UserError, match="cannot convert to 'onnx'"):
        convert(release, tmp_path / "out", to="onnx")


def test_another_model_is_no_llava(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(UserError, match="model_type 'qwen2_vl'"):
        convert(tmp_path, tmp_path / "out", to="official")


def test_official_shapes_follow_the_vocabulary():
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
        ),
        vision_config=CLIPVisionConfig(**VISION),
    )
    assert official_shapes(config)["lm_head.weight"] == (128, 32)
    assert official_shapes(config, 70)["model.embed_tokens.weight"] == (70, 32)
