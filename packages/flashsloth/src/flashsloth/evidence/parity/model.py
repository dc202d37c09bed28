"""Golden case of the whole model: prefill, greedy decoding, several rounds, and training steps.

The reference counts its question ranges; they come in through ``question_spans`` (`questions.official_spans`). Where
the template gives the same ones, with the ids of real prompts, is compared in `data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PhiConfig, SiglipVisionConfig

from flashsloth.checkpoints.keys import to_official
from flashsloth.configuration import HD_VIEWS, FlashSlothConfig
from flashsloth.evidence.parity.common import official_weights
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.questions import official_spans, placeholders, query_places, with_placeholders
from tenfold.ledger.goldens import Comparison

IGNORE = -100
IMAGE = -200  # the official placeholder of a whole image in the input ids
OFFSET = 10_000_000  # ids of ours that stand for images must not be words of a tiny vocabulary


def tiny_model(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """All parts of a case."""
    for name in ("single", "hd", "multiturn_infer"):
        if f"in/{name}/input_ids" in tensors:
            _answering(name, case["config"], tensors, compare)
    for name in ("sft", "plain20"):
        if f"in/{name}/input_ids" in tensors:
            _training(name, case, tensors, compare)


def golden_model(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], views: int = 1
) -> FlashSlothForConditionalGeneration:
    """A case's model, from weights under official names."""
    llm, vision, embq = config["llm"], config["vision"], config["embq"]
    text = PhiConfig(  # type: ignore[call-arg]
        vocab_size=llm["vocab"],
        hidden_size=llm["hidden"],
        intermediate_size=llm["intermediate"],
        num_hidden_layers=llm["layers"],
        num_attention_heads=llm["heads"],
        partial_rotary_factor=llm["partial_rotary_factor"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": llm["rope_theta"],
            "partial_rotary_factor": llm["partial_rotary_factor"],
        },
        hidden_act=llm["act"],
        layer_norm_eps=llm["ln_eps"],
        bos_token_id=None,
        eos_token_id=None,
    )
    tower = SiglipVisionConfig(
        hidden_size=vision["hidden"],
        intermediate_size=vision["intermediate"],
        num_hidden_layers=vision["layers_kept"],
        num_attention_heads=vision["heads"],
        image_size=vision["image"],
        patch_size=vision["patch"],
        hidden_act=vision["act"],
        layer_norm_eps=vision["ln_eps"],
        vision_use_head=False,
    )
    ours = FlashSlothConfig(
        text_config=text,
        vision_config=tower,
        views=views,
        pool=config["sap"]["pool"],
        query_count=embq["queries"],
        embq_layer=embq["layer_index"],
        embq_width=embq["down"],
        dot_token_id=embq["dot_token_id"],
        query_token_id=config["learnable_token_id"],
        image_token_id=OFFSET,
    )
    model = FlashSlothForConditionalGeneration(ours).eval()
    model.load_state_dict(official_weights(tensors), strict=True)
    return model


def pixels(images: Tensor) -> Tensor:
    """``(u / 255 - 0.5) / 0.5`` of uint8."""
    return (images.float() / 255 - 0.5) / 0.5


@torch.no_grad()
def _answering(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    images = pixels(tensors[f"in/{name}/images_u8"])
    model = golden_model(config, tensors, views=HD_VIEWS if images.ndim == 5 else 1)
    ours = model.config
    rows = [_expanded(row, ours)[0] for row in tensors[f"in/{name}/input_ids"]]
    ids = torch.tensor(rows)
    spans = _check_ranges(name, rows, [None] * len(rows), ours, tensors, compare)
    embeds = model.model._embed(ids, model.encode_images(images))
    compare.close(f"{name} embeddings", embeds, tensors[f"out/{name}/inputs_embeds"], "model")
    output, entered, left = _prefill(model, ids, images, spans)
    compare.close(f"{name} before EmbQ", left, tensors[f"out/{name}/layer6_out"], "model")
    compare.close(f"{name} behind EmbQ", entered, tensors[f"out/{name}/layer7_in"], "model")
    compare.close(f"{name} logits", output.logits[:, -1], tensors[f"out/{name}/logits_last"], "model")

    greedy = tensors[f"out/{name}/greedy"]
    steps = [output.logits[:, -1]]
    for _ in range(greedy.shape[1] - 1):
        token = steps[-1].argmax(dim=-1, keepdim=True)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits[:, -1])
    compare.equal(f"{name} greedy", torch.stack([step.argmax(dim=-1) for step in steps], dim=1), greedy)
    if (decoded := tensors.get(f"out/{name}/decode_logits")) is not None:
        # Which steps the reference kept, the case does not say: the prefill's, or those behind it.
        ours_logits = torch.cat(steps)
        first = 0 if _near(ours_logits[: len(decoded)], decoded) else 1
        compare.close(f"{name} decode logits", ours_logits[first : first + len(decoded)], decoded, "model")

    for use_cache in (True, False):
        options = {"max_new_tokens": greedy.shape[1], "do_sample": False, "use_cache": use_cache}
        made = model.generate(ids, pixel_values=images, question_spans=spans, **options)
        compare.equal(f"{name} generate(), cache {use_cache}", made[:, ids.shape[1] :], greedy)


def _training(name: str, case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    model = golden_model(case["config"], tensors)
    ours = model.config
    rows, labels = [], []
    given = zip(*(tensors[f"in/{name}/{key}"] for key in ("input_ids", "labels", "attention_mask")), strict=True)
    for row, label, mask in given:
        one, learnt = _expanded(row[mask], ours, label[mask])
        rows.append(one)
        labels.append(learnt)
    width = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    targets = torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels])
    compare.equal(f"{name} labels", targets, tensors[f"out/{name}/new_labels"])
    compare.equal(f"{name} attention mask", mask.bool(), tensors[f"out/{name}/new_attention_mask"])
    with_image = [ours.image_token_id in row for row in rows]
    compare.equal(f"{name} modal", [1 + one for one in with_image], tensors[f"out/{name}/modal"])
    spans = _check_ranges(name, rows, labels, ours, tensors, compare)
    images = pixels(tensors[f"in/{name}/images_u8"][torch.tensor(with_image)])
    inputs = {"input_ids": padded, "attention_mask": mask, "labels": targets, "pixel_values": images}

    with torch.enable_grad():
        entered: list[Tensor] = []
        layer = model.model.language_model.layers[ours.embq_layer]
        handle = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0].detach()))
        final: list[Tensor] = []
        norm = model.model.language_model.final_layernorm
        handle2 = norm.register_forward_hook(lambda _, args, output: final.append(output.detach()))
        loss = model(**inputs, question_spans=spans).loss
        loss.backward()
    handle.remove()
    handle2.remove()
    compare.close(f"{name} loss", loss, tensors[f"out/{name}/loss"], "model")
    real = mask.bool()
    for key, value in (("layer7_in", entered[0]), ("final_hidden", final[0])):
        if (golden := tensors.get(f"out/{name}/{key}")) is not None:  # padding is nobody's
            compare.close(f"{name} {key}", value[real], golden[real], "model")
    _check_gradients(name, case["grad_norm_names"], model, tensors, compare)


def _expanded(ids: Tensor, config: FlashSlothConfig, labels: Tensor | None = None) -> tuple[list[int], list[int]]:
    """A golden row with placeholders, and its labels, -100 at these."""
    given = ids.tolist()
    learnt = [IGNORE] * len(given) if labels is None else labels.tolist()
    marks = (IMAGE, config.query_token_id)
    learnt = [IGNORE if token in marks else label for token, label in zip(given, learnt, strict=True)]
    return with_placeholders(given, learnt, placeholders(config, IMAGE))


def _check_gradients(
    name: str,
    names: list[str],
    model: FlashSlothForConditionalGeneration,
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> None:
    gradients = to_official({key: value.grad for key, value in model.named_parameters()})
    norms = torch.stack([torch.zeros(()) if gradients[key] is None else gradients[key].norm() for key in names])  # type: ignore[union-attr]
    compare.close(f"{name} gradient norms", norms, tensors[f"out/{name}/grad_norms"], "model")
    compare.close(f"{name} gradient norm", norms.norm(), tensors[f"out/{name}/grad_norm_total"], "model")
    prefix = f"out/{name}/grad/"
    for key in (key for key in tensors if key.startswith(prefix)):
        compare.close(f"{name} {key}", gradients[key.removeprefix(prefix)], tensors[key], "model")


def _check_ranges(
    name: str,
    rows: list[list[int]],
    labels: list[Any],
    config: FlashSlothConfig,
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> Tensor:
    """The official ranges of a batch, compared, as ``[batch, rounds, 2]``."""
    places, ranges, spans = [], [], []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        found = official_spans(row, config, len(rows), label)
        places += [[number, place] for place in query_places(row, config)]
        ranges += [[number, *span] for span in found]
        spans.append(found)
    compare.equal(f"{name} places", places, tensors[f"out/{name}/insert_place"])
    compare.equal(f"{name} question ranges", ranges, tensors[f"out/{name}/question_ranges"])
    most = max(map(len, spans))
    return torch.tensor([row + [(0, 0)] * (most - len(row)) for row in spans])


def _prefill(
    model: FlashSlothForConditionalGeneration, ids: Tensor, images: Tensor, spans: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """The prefill's output; what entered EmbQ's layer, and what left the layer before it."""
    seen: list[Tensor] = []
    layers, at = model.model.language_model.layers, model.config.embq_layer
    handles = [layers[at].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    handles.append(layers[at - 1].register_forward_hook(lambda _, args, output: seen.append(output)))
    output = model(input_ids=ids, pixel_values=images, question_spans=spans, use_cache=True)
    for handle in handles:
        handle.remove()
    return output, seen[1], seen[0]


def _near(ours: Tensor, golden: Tensor) -> bool:
    return ours.shape == golden.shape and bool((ours - golden).abs().max() < 0.01)
