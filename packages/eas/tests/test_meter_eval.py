"""METER evaluated from official files through the command: scores by hand, splits named, leaks told."""

import pytest
import torch
from meter_fixtures import flickr30k, folder, picture, vqa
from PIL import Image

from eas.checkpoints.meter import open_meter
from eas.commands.app import main
from eas.data.meter import Encoder, Query, answer_vocabulary, leak, prepare, soft_targets
from tenfold.data import formats
from tenfold.data.formats import NLVR2Sample
from tenfold.runs import read_json
from tenfold.testing import commands


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
    flickr30k(tmp_path / "d", ("test", "val", "test", "train"))
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
