"""transformers' Auto classes and pipelines on a saved LLaVA-HR folder."""

import numpy as np
from llava_hr_fixtures import tiny_config, tiny_model
from llava_hr_text_fixtures import processor
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import llava_hr.auto  # noqa: F401
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor


def test_the_pipeline_answers_as_generate_does(tmp_path):
    """With a prompt, a chat and a batch. Fails if model, processor or image processor is not registered."""
    first = processor(tmp_path)
    model = tiny_model(config=tiny_config(image_size=32, vocab_size=first.image_token_id))
    assert model.config.num_image_tokens == first.num_image_tokens
    model.save_pretrained(tmp_path / "model")
    first.save_pretrained(tmp_path / "model")
    assert type(AutoProcessor.from_pretrained(tmp_path / "model")) is LlavaHrProcessor
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "model")) is LlavaHrForConditionalGeneration

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    prompts = [first.prompt("what is it"), first.prompt("how many red squares are there")]
    expected = []
    for prompt in prompts:
        inputs = first(images=image, text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=4)
        expected.append(first.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    answers = pipeline("image-text-to-text", model=str(tmp_path / "model"))
    options = {"max_new_tokens": 4, "return_full_text": False}
    assert answers(images=image, text=prompts[0], **options)[0]["generated_text"] == expected[0]
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is it"}]}]
    assert answers(text=chat, **options)[0]["generated_text"] == expected[0]
    batch = answers(images=[[image], [image]], text=prompts, batch_size=2, **options)
    assert [answer["generated_text"] for answer in batch] == expected
