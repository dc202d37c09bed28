"""`inst-diff-edit eval`: from files to numbers, in one go, in two ranks, and after a kill."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from inst_diff_edit.commands import app as cli
from inst_diff_edit.commands import tables
from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation import metrics
from inst_diff_edit.evaluation import run as evaluate
from inst_diff_edit.evaluation import scores as scoring
from inst_diff_edit.evaluation.run import EDITS, run_eval, write_mini_set
from inst_diff_edit.evaluation.scores import Edited, Networks, score
from inst_diff_edit.evaluation.settings import EvalSettings
from inst_diff_edit.miniature import model as mini
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.data.formats.editing import EditRecord, EditSample, read_edits, write_edits
from tenfold.data.formats.records import Picture
from tenfold.ledger import load_ledger
from tenfold.runs import RunRecord, read_jsonl
from tenfold.testing.processes import fork


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "mini"
    mini.build(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four scenes as Editing-Mask, two each as Imagen and as ImageNet."""
    folder = tmp_path_factory.mktemp("data") / "data"
    write_mini_set(folder, 4)
    samples = read_edits(folder, "Editing-Mask")
    for name, part in (("Imagen", samples[:2]), ("ImageNet", samples[2:])):
        write_edits(folder, name, [EditSample(one.record, one.picture, None) for one in part])
    return folder


@pytest.fixture(scope="module")
def options(model, data):
    """Two steps of four, two pictures at a time."""
    return {"model": str(model), "data": str(data), "steps": 4, "batch": 2}


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "run"
    run_eval(EvalSettings(**options), 0, folder)
    return folder


def silent(items, label):
    return items


def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_pictures_masks_results_and_record_are_written(whole, data):
    """Fails if IoU is not that of the written mask with the human one, or a result has no file."""
    record = RunRecord.load(whole)
    found = record.metrics["sets"]["Editing-Mask"]
    rows = read_jsonl(whole / "Editing-Mask" / "results.jsonl")
    assert record.verb == "eval" and set(record.data) == {"model", "Editing-Mask"} and found["records"] == 4
    assert json.loads((whole / "metrics.json").read_text()) == record.metrics
    assert [row["id"] for row in rows] == ["1", "2", "00003", "00004"]
    for row, sample in zip(rows, read_edits(data, "Editing-Mask"), strict=True):
        mask = np.asarray(Image.open(whole / "Editing-Mask" / "masks" / f"{row['id']}.png"))
        assert mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
        assert {name: row[name] for name in ("iou", "iou_64")} == metrics.mask_ious(mask, sample.mask())
        assert Image.open(whole / "Editing-Mask" / "images" / f"{row['id']}.png").size == (32, 32)
        assert row["prompt"] == sample.record.edit_prompt
    assert found["iou"] == pytest.approx(np.mean([row["iou"] for row in rows]))
    assert not (whole / EDITS).exists()


def test_two_ranks_are_one(options, whole, tmp_path):
    """Fails if a record is edited twice or not at all, or noises depend on the rank or the order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    output = tmp_path / "run"
    children = [fork(lambda: run_eval(EvalSettings(**options), 0, output), RANK=str(rank), **shared) for rank in (0, 1)]
    assert [status(child) for child in children] == [0, 0]
    ours, theirs = RunRecord.load(output), RunRecord.load(whole)
    assert ours.metrics == theirs.metrics and ours.outputs == theirs.outputs


def test_after_a_kill_only_what_is_missing_is_made(options, whole, tmp_path):
    """Fails if edits are kept only at the end, or the resumed run begins anew."""
    output = tmp_path / "run"

    def dies(items, label):
        for number, item in enumerate(items):
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    assert status(fork(lambda: run_eval(EvalSettings(**options), 0, output, dies))) == -signal.SIGKILL
    assert not (output / "run.json").exists() and (output / EDITS).is_dir()
    kept = tmp_path / "other"
    shutil.copytree(output, kept)
    made = []
    run_eval(EvalSettings(**options), 0, output, lambda items, label: (made.append(one) or one for one in items))
    assert made == [["Editing-Mask/00003", "Editing-Mask/00004"]]
    assert RunRecord.load(output).outputs == RunRecord.load(whole).outputs
    with pytest.raises(UserError, match=r"made with another threshold: 0.2"):
        run_eval(EvalSettings(**options, threshold=0.4), 0, kept, silent)
    for file in (kept / EDITS).rglob("masks/1.png"):
        file.unlink()
    with pytest.raises(UserError, match="an edit that was made is gone"):
        run_eval(EvalSettings(**options), 0, kept, silent)
    with pytest.raises(UserError, match="holds a finished run"):
        run_eval(EvalSettings(**options), 0, output, silent)


def test_an_edit_depends_neither_on_its_batch_nor_on_the_order(options, whole, data, tmp_path):
    """Fails if pictures share a stream of noise."""
    turned = tmp_path / "data"
    write_edits(turned, "Editing-Mask", read_edits(data, "Editing-Mask")[::-1])
    run_eval(EvalSettings(**{**options, "data": str(turned), "batch": 1}), 0, tmp_path / "run", silent)
    for file in (whole / "Editing-Mask" / "masks").iterdir():
        assert file.read_bytes() == (tmp_path / "run" / "Editing-Mask" / "masks" / file.name).read_bytes()
    for file in (whole / "Editing-Mask" / "images").iterdir():
        ours, theirs = (
            np.asarray(Image.open(one)).astype(int)
            for one in (file, tmp_path / "run" / "Editing-Mask" / "images" / file.name)
        )
        assert abs(ours - theirs).max() <= 1


def test_a_seed_changes_the_noises(options, whole, tmp_path):
    run_eval(EvalSettings(**options, limit=1), 1, tmp_path / "run", silent)
    name = "Editing-Mask/images/1.png"
    assert (tmp_path / "run" / name).read_bytes() != (whole / name).read_bytes()


def test_sdedit_has_pictures_and_no_masks_and_diffedit_without_inpainting_the_reverse(options, tmp_path):
    """SDEdit is the method with a mask of ones. Fails if noise or embeddings are drawn otherwise."""
    found = run_eval(EvalSettings(**options, method="sdedit", limit=1), 0, tmp_path / "sdedit", silent)
    assert "iou" not in found.metrics["sets"]["Editing-Mask"]
    pipe, task = mini.load(options["model"]), read_edits(options["data"], "Editing-Mask")[0]
    ones = {
        "callback_on_step_end": lambda p, s, t, tensors: {"mask": torch.ones_like(tensors["mask"])},
        "callback_on_step_end_tensor_inputs": ("mask",),
    }
    expected = pipe(task.image(), task.record.edit_prompt, 0.5, 4, num_masks=1, final="latents", **ones).images[0]
    written = np.asarray(Image.open(tmp_path / "sdedit" / "Editing-Mask" / "images" / "1.png")).astype(int)
    assert abs(written - np.asarray(expected)).max() <= 1
    asked = EvalSettings(**options, method="diffedit", diffedit_noises=2, limit=1)
    found = run_eval(asked, 0, tmp_path / "diffedit", silent)
    assert found.metrics["sets"]["Editing-Mask"]["iou"] >= 0
    assert not (tmp_path / "diffedit" / "Editing-Mask" / "images").exists() and "--inpaint" in found.skipped[0]


def test_the_mini_set_reads_back_pixel_for_pixel(data):
    """Official names, half of each kind. Fails if pictures go through JPEG."""
    for index, sample in enumerate(read_edits(data, "Editing-Mask")):
        drawn = scenes.edit(evaluate.MINI_WORLD, index)
        assert np.array_equal(np.asarray(sample.image()), np.asarray(drawn.picture()))
        assert np.array_equal(sample.mask(), drawn.mask()) and sample.record.edit_prompt == drawn.prompt
        if index < 2:
            assert sample.record.source in sample.record.sentence and sample.record.file_name == f"{index + 1}.jpg"
        else:
            assert sample.record.file_name == f"ILSVRC2012_val_{index + 1:08d}.JPEG"


class Pixels:
    """In place of networks: changes and features of pixels."""

    def distance(self, first, second):
        return (first - second).abs().mean((1, 2, 3))

    def maps(self, first, second):
        return (first - second).abs().mean(1)

    def __call__(self, pictures):
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 1).flatten(1)


def edited_set(tmp_path, targets):
    """White pictures whose left half became darker, by another amount each."""
    made = []
    for number, target in enumerate(targets):
        after = np.full((32, 32, 3), 255, np.uint8)
        after[:, :16] -= 51 * (number + 1)
        Image.fromarray(after).save(tmp_path / f"{number}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[:, :16] = 255
        Image.fromarray(mask).save(tmp_path / f"{number}-mask.png")
        record = EditRecord(str(number), f"{number}.jpg", f"a {target}", "x", target, None)
        sample = EditSample(record, Picture(Image.new("RGB", (32, 32), "white")), Picture(Image.fromarray(mask)))
        made.append(Edited(str(number), sample, {}, tmp_path / f"{number}.png", tmp_path / f"{number}-mask.png"))
    return made


def test_change_is_measured_inside_and_outside_of_the_human_mask(tmp_path):
    """Fails if inside and outside are exchanged, or the rate is a mean of ratios."""
    networks = Networks(lpips={"alex": Pixels()})
    edited = edited_set(tmp_path, ["tea pot", "mug"])
    found = score("Editing-Mask", edited, EvalSettings(), networks).metrics
    assert found["iou"] == pytest.approx(1) and found["lpips_alex"] == pytest.approx((0.2 + 0.4) / 2, abs=1e-6)
    assert found["change_inside_alex"] == pytest.approx((0.4 + 0.8) / 2, abs=1e-6)
    assert found["change_outside_alex"] == 0 and "change_rate_alex" not in found


def test_fid_and_csfid_are_taken_from_the_right_sets(tmp_path):
    """FID against the originals, CSFID class by class against real pictures. Fails if classes are mixed."""
    edited = edited_set(tmp_path, ["tea pot", "mug"])
    for target, grey in (("tea pot", 100), ("mug", 200)):
        (tmp_path / "real" / target).mkdir(parents=True)
        Image.new("RGB", (40, 20), (grey,) * 3).save(tmp_path / "real" / target / "1.png")
    settings = EvalSettings(inception="x", real=str(tmp_path / "real"))
    found = score("ImageNet", edited, settings, Networks(inception=Pixels())).metrics
    after = torch.tensor([[0.8] * 3, [0.6] * 3]).double()
    before = torch.ones(2, 3).double()
    assert found["fid"] == pytest.approx(metrics.fid(after, before), abs=1e-5)
    real = [2 * grey / 255 - 1 for grey in (100, 200)]
    assert found["csfid"] == pytest.approx(np.mean([3 * (0.8 - real[0]) ** 2, 3 * (0.6 - real[1]) ** 2]), abs=1e-5)
    shutil.rmtree(tmp_path / "real" / "mug")
    with pytest.raises(UserError, match=r"no real pictures of a target class: .*mug"):
        score("ImageNet", edited, settings, Networks(inception=Pixels()))
    with pytest.raises(UserError, match="--inception FILE"):
        Networks.load(EvalSettings(real=str(tmp_path / "real")))


def test_clip_score_reads_phrase_and_sentence(tmp_path):
    class Clip:
        def score(self, pictures, texts):
            return torch.tensor([float(len(text)) for text in texts])

    (one,) = edited_set(tmp_path, ["grey wolf"])
    record = EditRecord("1", "1.jpg", "a grey wolf", "a bear", "a grey wolf", "A photo of a bear on a hill.")
    one = Edited("1", EditSample(record, one.sample.picture, None), {}, one.image_file, None)
    found = score("Imagen", [one], EvalSettings(), Networks(clip=Clip())).metrics
    assert found["clip_phrase"] == len("a grey wolf")
    assert found["clip_sentence"] == len("A photo of a grey wolf on a hill.")


def test_the_paper_s_values_stand_beside_whole_sets_only():
    """Fails if a claim is renamed, or a mini run or part of a set is shown beside the paper's numbers."""
    whole = EvalSettings(model="sd", data="data")
    assert tables.published(whole, "Editing-Mask", 200) == {"iou": 56.2}
    assert tables.published(whole, "Imagen", 360)["fid"] == 55.3
    diffedit = EvalSettings(model="sd", data="data", method="diffedit")
    assert tables.published(diffedit, "Editing-Mask", 200) == {"iou": 33.0}
    assert tables.published(EvalSettings(), "Editing-Mask", 200) == {}
    assert tables.published(whole, "Editing-Mask", 199) == {}
    known = {claim.id for claim in load_ledger(package_file("inst_diff_edit", "claims.yaml")).claims}
    assert {claim for claims in tables.CLAIMS.values() for claim in claims.values()} <= known


def test_every_command_of_the_ledger_parses():
    """What `claims` tells a user with weights and data to type. Fails if an option is renamed."""
    command = typer.main.get_command(cli.app)
    lines = [
        one.command for one in load_ledger(package_file("inst_diff_edit", "claims.yaml")).claims if one.kind == "full"
    ]
    assert len(lines) >= 10
    for line in lines:
        program, verb, *arguments = shlex.split(line)
        assert program == "inst-diff-edit"
        command.commands[verb].make_context(verb, arguments)


def test_batches_of_scoring_cover_everything():
    assert [list(part) for part in scoring._batches(list(range(20)))] == [list(range(16)), list(range(16, 20))]
