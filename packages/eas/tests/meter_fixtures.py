"""A tiny METER whose weights are drawn at random, a tokenizer as RoBERTa's is, and its data on disk."""

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from eas.checkpoints.meter import MeterAbout, write_meter
from eas.meter import Meter, MeterConfig, MeterInputs
from tenfold.data import formats
from tenfold.data.formats import KarpathyImage, Picture, VQAv2Annotation, VQAv2Sample

TINY = {
    "size": 16, "answers": 3, "max_text": 8, "width": 16, "heads": 2, "ffn": 32, "vocabulary": 300,
    "text_positions": 12, "text_width": 16, "text_layers": 1, "vit_width": 16, "vit_layers": 2, "vit_heads": 2,
    "vit_patch": 8, "adapter_rank": 4, "pia_rank": 6, "dropout": 0.0,
}  # fmt: skip


def meter(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Meter(MeterConfig(**TINY | changes)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gain = parameter.ndim == 1 and name.endswith("weight")  # of a norm: about 1, or no input is heard
                parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 0.1) + gain)
    return model


def inputs(rows=3, pictures=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 60, (rows, 8), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, 8 - row :], mask[row, 8 - row :] = 1, 0
    return MeterInputs(ids, mask, tuple(torch.randn(rows, 3, 16, 16, generator=generator) for _ in range(pictures)))


def tokenizer(folder):
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["is the cup red?"], trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder


ANSWERS = ["yes", "no", "red"]


def picture(seed):
    return Picture(Image.effect_noise((24, 18), 20 + 30 * seed).convert("RGB"))


def folder(place, task, trained_on=(), **changes):
    model = meter(task=task, skip=(2, 19), **changes)
    about = MeterAbout(trained_on=trained_on, left_out={})
    answers = ANSWERS if task == "vqa" else None
    write_meter(
        place / task, model.config, model.state_dict(), about, tokenizer=tokenizer(place / "t"), answers=answers
    )
    return place / task


def vqa(place, subset="val2014", start=0):
    said = VQAv2Annotation(("red",) * 3 + ("yes",) * 5 + ("no",) * 2, "yes", "what", "other")
    samples = [
        VQAv2Sample(start + number, start + number // 2, f"is it {number}?", picture(number // 2), said)
        for number in range(4)
    ]
    formats.write_vqav2(place, samples, subset)
    return place


def flickr30k(place, splits):
    """One photograph a split's name, each with two captions."""
    (place / "flickr30k-images").mkdir(parents=True)
    (place / "karpathy").mkdir()
    images = []
    for number, split in enumerate(splits):
        picture(number).write(place / "flickr30k-images" / f"{number}.png")
        ids = (2 * number, 2 * number + 1)
        images.append(KarpathyImage(number, f"{number}.png", split, (f"a {number}", f"one {number} cup"), ids))
    formats.write_karpathy(place / "karpathy" / "dataset_flickr30k.json", images, "flickr30k")
    return place
