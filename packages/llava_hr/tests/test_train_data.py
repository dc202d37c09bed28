"""Training data: records to samples and batches, the order of an epoch, and what is refused."""

import json
import logging

import numpy as np
import pytest
import torch
from llava_hr_text_fixtures import GOLDENS, processor
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from tenfold import UserError
from tenfold.data.instruct import Collator, InstructData
from tenfold.data.sampler import ModalityLengthSampler, modality_length_order
from tenfold.testing.tokenizers import learnt

CHAT = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}]
TEXT = [
    {"from": "human", "value": "a or b?"}, {"from": "gpt", "value": "b"},
    {"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes it is"},
]  # fmt: skip
RECORDS = [
    {"id": "one", "image": "a/1.png", "conversations": CHAT},
    {"id": 2, "conversations": TEXT},
    {"id": "three", "image": "2.png", "conversations": CHAT},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    for number, name in enumerate(("a/1.png", "2.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def read(folder, records=RECORDS, **options):
    (folder / "data.json").write_text(json.dumps(records))
    return InstructData(folder / "data.json", folder, processor(folder), **options)


def test_records_become_samples_and_a_batch(folder):
    """Fails if rows are padded on the left, padding is learnt or attended to, or images leave reading order."""
    data = read(folder)
    batch = Collator(data.processor)([data[number] for number in range(3)])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert torch.equal(batch["pixel_values"][1:], data[2]["pixel_values"])
    for number in range(3):
        ids, length = data[number]["input_ids"], len(data[number]["input_ids"])
        assert torch.equal(batch["input_ids"][number, :length], ids)
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert (batch["input_ids"][number, length:] == 0).all() and (batch["labels"][number, length:] == -100).all()
    answers = [learnt(data.processor.tokenizer, row) for row in batch["labels"]]
    assert answers == [["acat</s>"], ["b</s>", "yesitis</s>"], ["acat</s>"]]
    assert "pixel_values" not in Collator(data.processor)([data[1]])


def test_captions_of_stage_one(folder):
    """Fails if stage 1 is trained on the instruction, or on text-only records."""
    data = read(folder, [RECORDS[0]], conversation="plain")
    assert learnt(data.processor.tokenizer, data[0]["labels"]) == ["acat"]
    with pytest.raises(UserError, match=r"a text-only conversation.*'plain'.*data\.json, record 1, id 2"):
        read(folder, conversation="plain")


def test_words_are_counted_as_the_official_sampler_counts_them(folder):
    """Fails if `<image>` is left out, if text-only records count as images, or a record counts as nothing."""
    empty = [{"from": "human", "value": ""}, {"from": "gpt", "value": " "}]
    data = read(folder, [*RECORDS, {"id": 4, "conversations": empty}])
    assert data.modality_lengths == [6, -8, 6, -1]


def test_images_are_read_when_asked_for(folder):
    """Fails if images are decoded when the json is read, or are kept."""
    data = read(folder)
    first = data[0]["pixel_values"]
    Image.new("RGB", (9, 9)).save(folder / "a" / "1.png")
    assert not torch.equal(data[0]["pixel_values"], first)
    (folder / "2.png").write_bytes((folder / "a" / "1.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"broken image.*2\.png.*data\.json, record 2, id 'three'"):
        data[2]
    (folder / "a" / "1.png").unlink()
    with pytest.raises(UserError, match=r"no such image.*1\.png.*data\.json, record 0, id 'one'"):
        data[0]


def with_turns(*turns):
    return [{"id": "x1", "conversations": [{"from": who, "value": text} for who, text in turns]}]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("[{", r"data\.json"),
        ({"id": 1}, r"dict instead of a list.*data\.json"),
        ([], r"no records.*data\.json"),
        ([{"id": 1}], r"'conversations' is missing.*data\.json, record 0"),
        ([{"id": 1, "conversations": []}], r"'conversations' is empty.*data\.json, record 0"),
        ([*RECORDS, {"id": 1, "image": "gone.png", "conversations": CHAT}], r"no such image.*gone\.png.*record 3"),
        ([{"id": 1, "image": "../1.png", "conversations": CHAT}], r"leaves the image folder.*record 0"),
        ([{"id": 1, "image": "2.png", "conversations": TEXT}], r"0 <image>.*record 0"),
        (with_turns(("human", "a"), ("human", "b")), r"from 'human'.*data\.json, record 0, id 'x1'"),
        (with_turns(("human", "a"), ("gpt", "b"), ("gpt", "c")), r"from 'gpt'.*data\.json, record 0, id 'x1'"),
        (
            with_turns(
                ("human", "a"),
            ),
            r"without an answer.*data\.json, record 0, id 'x1'",
        ),
        (with_turns(("user", "a"), ("gpt", "b")), r"'user'.*data\.json, record 0"),
    ],
)
def test_broken_data_is_refused_before_training(records, message, folder):
    """Fails if a record is skipped, or found out hours into the run."""
    (folder / "data.json").write_text(records if isinstance(records, str) else json.dumps(records))
    with pytest.raises(UserError, match=message) as caught:
        InstructData(folder / "data.json", folder, processor(folder))
    assert "\n" not in str(caught.value)


def test_a_sample_with_nothing_to_learn_is_reported(folder, caplog):
    """Fails if a sample whose answers are cut off passes in silence."""
    data = read(folder, max_length=50)
    with caplog.at_level(logging.WARNING):
        data[0]
    assert "nothing to learn within 50 tokens" in caplog.text and "id 'one'" in caplog.text


def test_the_golden_order():
    """Fails if megabatches mix modalities, leave their length order, or draw their numbers in another sequence."""
    case, tensors = json.loads((GOLDENS / "metrics.json").read_text()), load_file(GOLDENS / "metrics.safetensors")
    config, lengths = case["config"]["sampler"], tensors["in/sampler.lengths"].tolist()
    generator = torch.Generator().manual_seed(config["seed"])
    order = modality_length_order(lengths, config["per_device_batch"], config["world_size"], generator)
    assert order == tensors["out/sampler.indices"].tolist()


def test_a_loader_with_workers_gives_what_one_without_gives(folder):
    """Fails if samples depend on the process that makes them."""
    data = read(folder)
    order = ModalityLengthSampler(data.modality_lengths, 2)
    options = {"batch_size": 2, "sampler": order, "collate_fn": Collator(data.processor)}
    alone, helped = DataLoader(data, **options), DataLoader(data, num_workers=1, **options)
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
