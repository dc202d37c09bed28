"""Golden cases of the whole model: generation, a training step, and the full-size weights (see `parity`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from llava_hr.checkpoints.keys import renamed, to_official
from llava_hr.configuration import LlavaHrConfig
from llava_hr.evidence.parity.vision import golden_image, official_weights, vision_config
from llava_hr.modeling import LlavaHrForConditionalGeneration, meta_model
from tenfold.ledger.goldens import Comparison, Computation

IMAGE = -200  # the official placeholder of a whole image in the input ids


def _tiny_llava_hr(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    model = golden_model(case["config"], tensors)
    _generation(case, tensors, compare, model)
    with torch.enable_grad():
        _training(case, tensors, compare, model.train())


def _generation(
    case: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    compare: Comparison,
    model: LlavaHrForConditionalGeneration,
) -> None:
    pixels = golden_image(tensors, "gen.image", case["config"]["input_image_size"])
    prompt = splice(tensors["in/gen.input_ids"], model.config)
    visual_tokens = model.encode_images(pixels)
    compare.close("image tokens", visual_tokens[:, ::6], tensors["out/gen.image_tokens"], "logits")
    output = model(input_ids=prompt["input_ids"], pixel_values=pixels, use_cache=True)
    compare.equal("prefill length", [output.logits.shape[1]], tensors["out/gen.prefill_length"])
    rows = output.logits[:, tensors["in/gen.rows"]]
    compare.close("prefill logits", rows, tensors["out/gen.prefill_logits"], "logits")

    steps = [output.logits[:, -1]]
    for _ in range(case["config"]["steps"] - 1):
        ids = steps[-1].argmax(dim=-1, keepdim=True)
        output = model(input_ids=ids, past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits[:, -1])
    logits = torch.stack(steps, dim=1)
    compare.close("decode logits", logits, tensors["out/gen.step_logits"], "logits")
    compare.equal("decoded tokens", logits.argmax(dim=-1), tensors["out/gen.tokens"])
    length = prompt["input_ids"].shape[1]
    for name, image in {"pixels": {"pixel_values": pixels}, "visual tokens": {"visual_tokens": visual_tokens}}.items():
        ids = model.generate(**prompt, **image, max_new_tokens=case["config"]["steps"], do_sample=False)
        compare.equal(f"generate() with {name}", ids[:, length:], tensors["out/gen.tokens"])


def _training(
    case: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    compare: Comparison,
    model: LlavaHrForConditionalGeneration,
) -> None:
    given = {key: tensors[f"in/train.{key}"] for key in ("input_ids", "labels", "attention_mask")}
    batch = splice(given["input_ids"], model.config, given["labels"], given["attention_mask"])
    compare.equal("spliced labels", batch["labels"], tensors["out/train.labels"])
    compare.equal("spliced mask", batch["attention_mask"], tensors["out/train.attention_mask"].long())
    # The reference runs its tower for a text-only row too, on a zero image of which nothing is used.
    with_image = (given["input_ids"] == IMAGE).any(dim=1)
    pixels = golden_image(tensors, "train.image", case["config"]["input_image_size"])[with_image]
    loss = model(**batch, pixel_values=pixels).loss
    loss.backward()
    compare.close("loss", loss[None], tensors["out/train.loss"], "loss")

    parameters = dict(model.named_parameters())
    norms = tensors["out/train.grad_norms"]
    for index, name in enumerate(case["grad_norm_names"]):
        ours = renamed([name], "ours").get(name)  # None: a weight that no computation uses, and we have no place for
        gradient = parameters[ours].grad if ours else None
        norm = norms.new_tensor(-1.0) if gradient is None else gradient.norm()
        if norms[index] <= 0:
            compare.equal(f"gradient norm of {name}", norm.item(), norms[index].item())
        else:
            compare.close(f"gradient norm of {name}", norm, norms[index], "gradients")
        if (golden := tensors.get(f"out/train.grad/{name}")) is not None:
            compare.close(f"gradient of {name}", parameters[ours].grad, golden, "gradients")


def _official_keys(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Every name and shape at full size, on the meta device; what we have no place for is counted."""
    for name, towers in case["keys"].items():
        sizes = {"V": case["dims"]["V"]} | case["dims"][name.removeprefix("llava-hr-").removeprefix("x-")]
        golden = {key: tuple(shape) for key, shape in towers.items()}
        for key, shape in case["language_model_keys"].items():
            for layer in range(sizes["L"] if "{i}" in key else 1):
                golden[key.format(i=layer)] = tuple(sizes[dim] for dim in shape)
        model = meta_model(name.removeprefix("llava-hr-"))
        ours = {key: tuple(tensor.shape) for key, tensor in to_official(dict(model.named_parameters())).items()}
        used = renamed(golden, "ours")
        unused = {key: shape for key, shape in golden.items() if key not in used}
        differing = sorted(ours.items() ^ {key: golden[key] for key in used}.items())
        compare.equal(f"{name} keys and shapes", differing, [])
        counts = case["parameter_counts"][name]
        total = sum(math.prod(shape) for shape in (ours | unused).values())
        compare.equal(f"{name} parameters", total, counts["total"])
        head = sum(math.prod(shape) for key, shape in unused.items() if ".head." in key)
        compare.equal(f"{name} head of the ConvNeXt", head, counts["convnext_head"])


def golden_model(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlavaHrForConditionalGeneration:
    """The whole model of a case, in eval mode."""
    llama = dict(config["llm"])
    llama["rope_parameters"] = {"rope_type": "default", "rope_theta": llama.pop("rope_theta", 10000.0)}
    fixed = {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    text = LlamaConfig(**{"max_position_embeddings": 4096, **llama, **fixed})
    adapters = any("align_stages_latent" in key for key in tensors)
    vision = vision_config(config, config["input_image_size"], adapters)
    whole = LlavaHrConfig(text_config=text, vision_config=vision, image_token_id=text.vocab_size)
    model = LlavaHrForConditionalGeneration(whole).eval()
    model.load_state_dict(official_weights(tensors), strict=True)
    return model


def splice(
    input_ids: Tensor, config: LlavaHrConfig, labels: Tensor | None = None, attention_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Official ids, with -200 per image, as ours with N placeholders; rows padded on the right (section 3.7)."""
    fields = {"input_ids": (input_ids, config.image_token_id, 0)}
    fields["attention_mask"] = (torch.ones_like(input_ids) if attention_mask is None else attention_mask.long(), 1, 0)
    if labels is not None:
        fields["labels"] = (labels, -100, -100)
    repeats = torch.where(input_ids == IMAGE, config.num_image_tokens, 1)
    batch = {}
    for name, (values, inserted, padding) in fields.items():
        values = values.masked_fill(input_ids == IMAGE, inserted)
        rows = [row.repeat_interleave(count) for row, count in zip(values, repeats, strict=True)]
        batch[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    return batch


COMPUTATIONS: dict[str, Computation] = {"tiny_llava_hr": _tiny_llava_hr, "official_keys": _official_keys}
