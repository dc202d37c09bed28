"""METER evaluated from official files through the command: scores by hand, splits named, leaks told."""

import pytest
import torch
from meter_fixtures import meter, tokenizer
from PIL import Image

from eas.checkpoints.meter import MeterAbout, open_meter, read_meter_about, write_meter
from eas.commands.app import main
from eas.data.meter import Encoder, Query, answer_vocabulary, leak, prepare, soft_targets
from tenfold.data import formats
from tenfold.data.formats import KarpathyImage, NLVR2Sample, Picture, VQAv2Annotation, VQAv2Sample
from tenfold.runs import read_json
from tenfold.testing import commands

ANSWERS = ["yes", "no", "red"]


def picture(seed):
    return Picture(Image.effect_noise((24, 18), 20 + 30 * seed).convert("RGB"))


def folder(place, task, trained_on=()):
    model = meter(task=task, skip=(2, 19))
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


def evaluate(tmp_path, model, benchmark, data, *more):
    output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    told = commands.run(
        main, "eval", str(model), "--benchmark", benchmark, "--data", str(data), "--output", str(output), *more
    )
    return told, output


def test_vqa_scores_softly_says_its_split_and_writes_for_the_server(tmp_path):
    """Fails if an answer's worth, the vocabulary's order, the leak or the server's file is another."""
    assert soft_targets(["red"] * 3 + ["Yes!"] * 5 + ["no"] * 2) == {"red": 0.9, "yes": 1.0, "no": 0.6}
    data, model = vqa(tmp_path / "d"), folder(tmp_path, "vqa", ("train2014", "val2014"))
    vqa(data, "train2014", 10)
    assert answer_vocabulary(data, least=8) == ["yes"] and answer_vocabulary(data) == []
    told, output = evaluate(tmp_path, model, "vqav2", data, "--split", "val2014", "--batch", "3")
    assert told.code == 0 and "val2014" in told.out and "training set" in told.out, told
    metrics, results = read_json(output / "metrics.json"), read_json(output / "results.json")
    worth = {"yes": 1.0, "red": 0.9, "no": 0.6}
    assert metrics["scores"]["soft score"] == pytest.approx(25 * sum(worth[one["answer"]] for one in results))
    assert [one["question_id"] for one in results] == [0, 1, 2, 3] and metrics["leaked_pictures"] == 2
    assert metrics["removed"] == 2 and metrics["macs_saved"] != 0
    refused, _ = evaluate(tmp_path, model, "vqav2", data, "--split", "val2014", "--train", "val2014")
    assert refused.code == 2 and "were trained on" in refused.err


def test_nlvr2_takes_both_pictures_and_a_leak_is_counted(tmp_path):
    """Fails if left and right are one picture, the accuracy is another, or a shared pair goes unsaid."""
    samples = [
        NLVR2Sample(f"dev-{n}-0-0", f"dev-{n}-0", f"both are {n}", bool(n % 2), (picture(n), picture(n + 3)))
        for n in range(3)
    ]
    formats.write_nlvr2(tmp_path / "d", samples, "dev")
    formats.write_nlvr2(tmp_path / "d", samples[:1], "train")
    model = folder(tmp_path, "nlvr2", ("train",))
    told, output = evaluate(tmp_path, model, "nlvr2", tmp_path / "d", "--split", "dev")
    assert told.code == 0, told
    opened, encoder = open_meter(model)[0], Encoder(model, open_meter(model)[0].config)
    read = formats.read_nlvr2(tmp_path / "d", "dev")
    with torch.no_grad():
        rows = [opened(encoder.batch([Query("", one.sentence, one.pictures, None, ())]))[0] for one in read]
    sides = encoder.batch([Query("", "", read[2].pictures, None, ())]).pixels
    assert all(torch.equal(side[0], prepare(one.open(), 16)) for side, one in zip(sides, read[2].pictures, strict=True))
    right = [bool(row.argmax()) == one.answer for row, one in zip(rows, read, strict=True)]
    metrics = read_json(output / "metrics.json")
    assert metrics["scores"]["accuracy"] == pytest.approx(100 * sum(right) / 3) and metrics["leaked_pictures"] == 1


def test_retrieval_scores_every_pair_as_alone(tmp_path):
    """Fails if a pair's score depends on the others, recall is of another split, or a text finds a wrong owner."""
    (tmp_path / "d" / "flickr30k-images").mkdir(parents=True)
    (tmp_path / "d" / "karpathy").mkdir()
    images = []
    for number, split in enumerate(("test", "val", "test", "train")):
        picture(number).write(tmp_path / "d" / "flickr30k-images" / f"{number}.png")
        ids = (2 * number, 2 * number + 1)
        images.append(KarpathyImage(number, f"{number}.png", split, (f"a {number}", f"one {number} cup"), ids))
    formats.write_karpathy(tmp_path / "d" / "karpathy" / "dataset_flickr30k.json", images, "flickr30k")
    model = folder(tmp_path, "irtr", ("train", "val"))
    told, output = evaluate(tmp_path, model, "flickr30k", tmp_path / "d", "--batch", "3")
    assert told.code == 0 and "compared with train, val" in told.out, told
    opened, encoder = open_meter(model)[0], Encoder(model, open_meter(model)[0].config)
    photographs = formats.read_flickr30k(tmp_path / "d")
    captions = [caption for one in photographs for caption in one.captions]
    with torch.no_grad():
        alone = [
            [float(opened(encoder.batch([Query("", text, (one.picture,), None, ())]))) for text in captions]
            for one in photographs
        ]
    lines = [__import__("json").loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    together = [dict(zip(line["captions"], line["scores"], strict=True)) for line in lines]
    spread = max(map(max, alone)) - min(map(min, alone))
    assert spread > 1e-3  # or equal scores would prove nothing
    for row, line in zip(alone, together, strict=True):
        assert [line[text] for text in range(4)] == pytest.approx(row, abs=1e-2 * spread)
    assert all(line["scores"] == sorted(line["scores"], reverse=True) for line in lines)
    scores = read_json(output / "metrics.json")["scores"]
    found = [max((0, 1), key=lambda image: together[image][text]) == text // 2 for text in range(4)]
    assert scores["IR@1"] == pytest.approx(25 * sum(found)) and scores["TR@10"] == 100
    assert leak("irtr", tmp_path / "d", "val", ("train", "val"), {"1"}) == (1, "val is in the training set")


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path):
    """Fails if a host, a task or a file that is missing gives a traceback, or an answer all the same."""
    model, data = folder(tmp_path, "vqa"), vqa(tmp_path / "d")
    (model / "answers.json").write_text('["yes"]')
    for benchmark, more, told in (
        ("vqav2", ("--split", "val2014"), "answers"),
        ("nlvr2", (), "task vqa"),
        ("aid", (), "a meter host"),
        ("vqav2", ("--host", "llava"), "its folder says so"),
    ):
        outcome, output = evaluate(tmp_path, model, benchmark, data, *more)
        assert outcome.code == 2 and told in outcome.err and len(outcome.err.strip().splitlines()) == 1, outcome
        assert not output.exists()


def test_a_picture_is_resized_by_its_short_edge_and_cropped_to_the_centre():
    """Fails if the aspect changes, or the crop is not of the middle."""
    made = Image.new("RGB", (60, 20))
    made.paste((255, 255, 255), (20, 0, 40, 20))
    found = prepare(made, 20)
    assert found.shape == (3, 20, 20) and bool((found[:, :, 2:-2] > 1).all())


@pytest.mark.parametrize(("task", "benchmark"), [("vqa", "vqav2"), ("irtr", "flickr30k")])
def test_a_search_and_a_tuning_from_official_files(task, benchmark, tmp_path):
    """Fails if a search leaves no file or scores on what it trains on, or a tuned folder is not one to evaluate."""
    data = vqa(tmp_path / "d")
    vqa(data, "train2014", 10)
    (data / "flickr30k-images").mkdir()
    (data / "karpathy").mkdir()
    images = []
    for number, split in enumerate(("train", "train", "val", "val", "test")):
        picture(number).write(data / "flickr30k-images" / f"{number}.png")
        images.append(
            KarpathyImage(number, f"{number}.png", split, (f"a {number}", "a cup"), (2 * number, 2 * number + 1))
        )
    formats.write_karpathy(data / "karpathy" / "dataset_flickr30k.json", images, "flickr30k")
    model = folder(tmp_path, task)
    base = ("--model", str(model), "--data", str(data), "--set", "batch=2", "--set", "false_texts=2")
    base += ("--set", "warmup=2", "--set", "steps=11", "--set", "removed=4")
    told = commands.run(main, "search", *base, "--output", str(tmp_path / "s"))
    assert told.code == 0 and "search.json" in told.out, told
    found = read_json(tmp_path / "s" / "search.json")
    assert (found["rule"], found["sites"], found["updates"], len(found["skip"])) == ("meter", 24, 1, 4)
    told = commands.run(main, "tune", *base, "--output", str(tmp_path / "t"))
    assert told.code == 0, told
    config, about = read_meter_about(tmp_path / "t" / "model")
    assert config.skip == (2, 19) and about.trained_on == (("train2014",) if task == "vqa" else ("train",))
    split = "val2014" if task == "vqa" else "test"
    told, _ = evaluate(tmp_path, tmp_path / "t" / "model", benchmark, data, "--split", split)
    assert told.code == 0, told
    scored = "train2014" if task == "vqa" else "train"
    told = commands.run(main, "search", *base, "--set", f"scored={scored}", "--output", str(tmp_path / "n"))
    assert told.code == 2 and "not trained on" in told.err and not (tmp_path / "n").exists()
