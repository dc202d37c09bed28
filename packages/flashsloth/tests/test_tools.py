"""What its users' tools do with the model (D14): Auto classes, Trainer, device maps, compiling, threads, embeddings."""

import itertools
from threading import Thread

import pytest
import torch
from flashsloth_fixtures import MIXED, batched, runs_of, tiny_images, tiny_inputs, tiny_model
from flashsloth_runs import mini_folder
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)

import flashsloth.auto
from flashsloth.data.mini_world import draw, render
from flashsloth.miniature.model import mini_processor
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from tenfold import UserError
from tenfold.runs.stages import reset

assert flashsloth.auto  # imported for what it registers


def labelled(model, images=MIXED):
    """A batch with labels at its words."""
    batch = batched(tiny_inputs(model, images), "right")
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    return batch | {"labels": ids.masked_fill(~mask | (ids > 50), -100)}


def test_auto_classes_and_the_pipeline(tmp_path):
    """Fails if a class is not registered, or the pipeline's text is not generate's."""
    folder = str(mini_folder(tmp_path / "model"))
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, FlashSlothForConditionalGeneration) and isinstance(processor, FlashSlothProcessor)
    picture = render(draw(0, 1))
    asked = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is red?"}]}
    ]
    told = pipeline("image-text-to-text", model=folder)(text=asked, max_new_tokens=4, return_full_text=False)
    inputs = processor(images=picture, text=processor.prompt("What is red?"), return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert told[0]["generated_text"].strip() == processor.decode(made, skip_special_tokens=True).strip()


def test_labels_give_the_mean_over_answers():
    """Against cross entropy by hand, shifted by one. Fails if labels are not shifted, or padding counts."""
    model = tiny_model()
    batch = labelled(model)
    output = model(**batch)
    wanted, logits = batch["labels"][:, 1:].flatten(), output.logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100)
    assert torch.allclose(output.loss, expected, atol=1e-5)


def test_transformers_trainer_trains_it(tmp_path):
    """Two steps on rows with none, one and two images. Fails if the loss cannot be computed, or nothing moves."""
    model = tiny_model()
    rows = [{name: value[0] if name != "pixel_values" else value for name, value in row.items()}
            for row in tiny_inputs(model, (1, 0, 2, 1))]  # fmt: skip

    def collate(some):
        batch = batched([{k: v[None] if k != "pixel_values" else v for k, v in row.items()} for row in some], "right")
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100).clamp(max=50)}

    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = TrainingArguments(tmp_path, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
                                use_cpu=True, remove_unused_columns=False, save_strategy="no")  # fmt: skip
    try:
        Trainer(model, options, train_dataset=rows, data_collator=collate).train()
    finally:
        reset()  # accelerate keeps what it was told for the process
    moved = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved >= {"language_model", "embq", "query_tokens", "pooling", "multi_modal_projector"}
    assert "vision_tower" not in moved


def test_devices_are_mapped(tmp_path):
    """Need 12: on two places, one of them the disk. Fails if a part cannot lie apart from the others, or patches do not
    follow the layer at which EmbQ stands."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    batch = batched(tiny_inputs(model, MIXED))
    expected = model.generate(**batch, max_new_tokens=3, do_sample=False)
    parts = {f"model.{name}": "cpu" for name in ("pooling", "multi_modal_projector", "query_tokens", "embq")}
    layers = {f"model.language_model.layers.{at}": "disk" if at == 1 else "cpu" for at in range(4)}
    rest = {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "final_layernorm", "rotary_emb")}
    maps = [{"": "cpu"}, {"model.vision_tower": "disk", "lm_head": "disk", **parts, **layers, **rest}]
    for device_map in maps:
        placed = AutoModelForImageTextToText.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        placed.generation_config.eos_token_id = None
        assert torch.equal(placed.generate(**batch, max_new_tokens=3, do_sample=False), expected)
    assert {"PhiDecoderLayer", "SiglipEncoderLayer", "EmbeddedQuery"} <= set(model._no_split_modules)


@torch.no_grad()
def test_it_compiles():
    """With graph breaks where the prefill reads its ids. Fails if a traced pass gives other logits."""
    model = tiny_model()
    batch = batched(tiny_inputs(model, (1, 1)))
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(**batch, use_cache=False).logits, model(**batch).logits, atol=1e-5)
    torch.compiler.reset()


def test_threads_do_not_meet():
    """Four threads on one model, each with its own images and question. Fails if a call leaves its patches or spans on
    a module that another one reads."""
    model = tiny_model()
    rows = list(itertools.chain.from_iterable(tiny_inputs(model, (1, 2), seed) for seed in (1, 2)))
    alone = [model.generate(**row, max_new_tokens=5, do_sample=False).tolist() for row in rows]
    together: dict[int, list] = {}

    def ask(number):
        for _ in range(3):
            together.setdefault(number, []).append(
                model.generate(**rows[number], max_new_tokens=5, do_sample=False).tolist()
            )

    threads = [Thread(target=ask, args=(number,)) for number in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(made == alone[number] for number, several in together.items() for made in several) and len(together) == 4


@torch.no_grad()
def test_embeddings_instead_of_ids():
    """Text alone: the same logits, for `generate` the same tokens; with an image it is refused by name."""
    model = tiny_model()
    ids = torch.tensor([[12, 13, 14, 15]])
    embeds = model.get_input_embeddings()(ids)
    assert torch.allclose(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits, atol=1e-5)
    made = model.generate(inputs_embeds=embeds, max_new_tokens=4, do_sample=False)
    assert torch.equal(made, model.generate(ids, max_new_tokens=4, do_sample=False)[:, 4:])
    pixels = tiny_inputs(model)[0]["pixel_values"]
    with pytest.raises(UserError, match="inputs_embeds"):
        model(inputs_embeds=embeds, pixel_values=pixels)


def test_gradient_checkpointing_changes_no_gradient():
    """Fails if EmbQ's step is run twice, or lost, in the recomputed pass."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**labelled(model), use_cache=False).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


@pytest.mark.parametrize("cached", [True, False])
def test_an_image_goes_through_the_tower_once_an_answer(cached):
    """Also without a cache, where every step reads the whole prompt. Fails if each token runs the tower again."""
    model = tiny_model()
    row = tiny_inputs(model)[0]
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**row, **options)
    runs, handle = runs_of(model.model.vision_tower)
    with handle:
        assert torch.equal(model.generate(**row, use_cache=cached, **options), expected)
    assert runs == [1]


def test_what_is_kept_of_an_image_has_no_graph_and_the_head_a_plan():
    """Fails if `encode_images` keeps the tower's activations, or tensor parallelism leaves the head out."""
    model = tiny_model().train()
    features = model.encode_images(tiny_images(1))
    assert not any(one.requires_grad for one in vars(features).values() if isinstance(one, torch.Tensor))
    assert model.tp_plan["lm_head"] == "colwise_gather_output"


def test_a_second_question_needs_no_pixels():
    """Fails if ids about an image whose features are known can only be made with the image."""
    processor = mini_processor()
    text = processor.prompt("What?")
    again = processor(text=text, num_images=1)
    assert "pixel_values" not in again and again["input_ids"][0].count(processor.image_token_id) == 9
    with pytest.raises(UserError, match="num_images 2"):
        processor(text=text, num_images=2)


def test_text_alone_pays_no_pass_of_the_tower_in_one_process():
    """What reads images gets a gradient of zero all the same. Fails if the tower runs, or a weight is left out."""
    found = []
    for dummy in ("weights", "image"):
        model = tiny_model().train()
        model.dummy_image = dummy
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        runs, handle = runs_of(model.model.vision_tower)
        row = tiny_inputs(model, (0,))[0]
        ids = row["input_ids"]
        with handle:
            model(**row, labels=ids.masked_fill(ids > 50, -100)).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
        assert runs == ([] if dummy == "weights" else [1])
    assert all(gradient is not None for gradient in found[0].values())
    for name, gradient in found[0].items():
        expected = found[1][name] if found[1][name] is not None else torch.zeros_like(gradient)
        torch.testing.assert_close(gradient, expected, msg=name)  # a frozen tower is passed without a graph
