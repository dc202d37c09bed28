"""From an image and a question to a host's inputs, the same way for calibration, demonstration and
evaluation."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

# LLaVA-1.5's user turn; used only where a processor brings no chat template of its own.
PLAIN_PROMPT = "USER: {image}\n{text} ASSISTANT:"


def prompt_text(processor: Any, text: str, images: int = 1) -> str:
    """The host's prompt for one user turn with ``images`` images before ``text``, ready for generation."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return PLAIN_PROMPT.format(image=getattr(processor, "image_token", "<image>") * images, text=text)


def encode(processor: Any, model: Any, image: Image.Image | None, text: str) -> dict[str, Any]:
    """Inputs of one prompt, on the model's device and, for pixels, in its dtype.

    Args:
        processor: the host's processor.
        model: the host.
        image: an RGB image of any size, or None for text alone.
        text: the question.

    Returns:
        ``input_ids`` ``[1, tokens]`` int64, ``pixel_values`` and whatever else the host's processor makes.
    """
    images = None if image is None else [image.convert("RGB")]
    prompt = prompt_text(processor, text, images=0 if image is None else 1)
    # The template writes the beginning-of-sequence token where the tokenizer would add a second one.
    bos = getattr(processor.tokenizer, "bos_token", None)
    encoded = processor(
        images=images,
        text=[prompt],
        return_tensors="pt",
        add_special_tokens=not (bos and prompt.startswith(bos)),
    )
    return {
        name: value.to(model.device, model.dtype if torch.is_floating_point(value) else None)
        for name, value in encoded.items()
        if torch.is_tensor(value)
    }
