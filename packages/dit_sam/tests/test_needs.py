"""What users of SAM and of referring segmentation ask for, each as a test."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from dit_sam_tiny import ROOT, SHORT, environment, run, tiny_model
from PIL import Image

from dit_sam.data.own import read_own
from dit_sam.data.settings import DATA_TREE
from dit_sam.evidence.findings import judge
from dit_sam.frame import fit
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor
from dit_sam.scores import Overlap, general_scores, referring_scores
from tenfold import UserError

README = (ROOT / "README.md").read_text(encoding="utf-8")


def photo(height=30, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_need_01_text_in_a_predictor_as_sam_has_it(tiny):
    """Fails if masks of a 3:1 picture were not bool [1, height, width]."""
    predictor = DitPredictor(tiny)
    predictor.set_image(photo())
    masks, scores, low_res = predictor.predict(text="the square")
    assert masks.dtype == bool and masks.shape == (1, 30, 90)
    assert scores.shape == (1,) and low_res.shape == (1, 24, 24)


def test_need_02_many_sentences_and_pictures_a_call(tiny):
    """Fails if K sentences were not K calls, or two pictures not two. (All variants: test_predictor.)"""
    predictor = DitPredictor(tiny)
    predictor.set_images([photo(), photo(50, 20, 1)])
    both = predictor.predict(text=[["the square", "the circle"], ["the circle"]])
    predictor.set_image(photo(50, 20, 1))
    assert (both[1].masks == predictor.predict(text="the circle").masks).all()


@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_need_03_other_input_sizes(tiny, size):
    """Fails if one checkpoint served one size alone. (Stretched tables: test_properties.)"""
    predictor = DitPredictor(tiny, input_size=size)
    predictor.set_image(photo())
    assert predictor.predict(text="the square").low_res.shape == (1, size // 2, size // 2)


def test_need_04_scores_are_probabilities():
    """Fails if a score lay outside of [0, 1], as SAM's IoU head does, or an empty mask had one above 0."""
    for seed in range(3):
        predictor = DitPredictor(tiny_model(seed=seed))
        predictor.set_image(photo(seed=seed))
        prediction = predictor.predict(text=["the square", "the circle"])
        assert ((prediction.scores >= 0) & (prediction.scores <= 1)).all()
        empty = ~prediction.masks.any((1, 2))
        assert (prediction.scores[empty] == 0).all()


def test_need_05_low_res_and_full_masks_fit_the_picture(tiny):
    """Fails if logits cut by their box were not the picture's. (Squares that come back: test_predictor.)"""
    predictor = DitPredictor(tiny)
    predictor.set_image(photo(90, 30))
    prediction = predictor.predict(text="the square")
    left, top, right, bottom = prediction.low_res_box
    assert (right - left) / (bottom - top) == pytest.approx(1 / 3)
    assert fit(90, 30, 48).box == tuple(2 * edge for edge in (left, top, right, bottom))


def test_need_06_rgb_and_bgr(tiny):
    """Fails if a PIL image, an RGB array and its BGR twin gave other masks."""
    found = []
    for image, kind in ((photo(), "RGB"), (Image.fromarray(photo()), "RGB"), (photo()[:, :, ::-1], "BGR")):
        predictor = DitPredictor(tiny)
        predictor.set_image(image, image_format=kind)
        found.append(predictor.predict(text="the square").low_res)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


def test_need_07_half_precision_does_not_black_out(tiny, tiny_folder):
    """Fails if bfloat16 weights gave another mask: IoU above 0.95, where the threshold lies at the median."""
    texts = ["the square", "the red circle"]
    exact, rough = DitPredictor(tiny), DitPredictor(DITSam.from_pretrained(tiny_folder, dtype=torch.bfloat16))
    for predictor in (exact, rough):
        predictor.set_image(photo(48, 48))
    logits, other = (predictor.predict(text=texts, return_logits=True).masks for predictor in (exact, rough))
    for one, two in zip(logits, other, strict=True):
        cut = np.median(one)
        a, b = one > cut, two > cut
        assert (a & b).sum() / (a | b).sum() > 0.95
    with pytest.raises(UserError, match="not finite"):
        broken = tiny_model()
        broken.text_proj.weight.data.fill_(float("nan"))
        predictor = DitPredictor(broken)
        predictor.set_image(photo())
        predictor.predict(text="the square")


def test_need_08_both_measures_are_named_and_counted(tiny_folder, mini_data, tmp_path):
    """Fails if mean and overall IoU could be mixed up, or the count of sentences were missing. (Ranks:
    test_evaluate.)
    """
    code, said, _ = run("eval", tiny_folder, "--data", mini_data, "--limit", 3, "--output", tmp_path / "eval")
    assert code == 0 and "mIoU" in said and "oIoU" in said and "3 sentences" in said
    scores = referring_scores([Overlap(10, 10, 10, 10), Overlap(0, 1000, 500, 500)])
    assert scores["mIoU"] == pytest.approx(50) and scores["oIoU"] == pytest.approx(100 * 10 / 1010)


def test_need_09_refer_data_explains_itself(tmp_path):
    """Fails if the help did not say train2014 or the files, or a missing file were not named."""
    assert (
        "train2014 (not train2017)" in DATA_TREE and "refs(<split>).p" in DATA_TREE and "anns/<set>.json" in DATA_TREE
    )
    (tmp_path / "refcoco").mkdir()
    code, _, line = run("eval", "--data", tmp_path, "--output", tmp_path / "out")
    assert code == 2 and "refs(unc).p" in line


def test_need_10_own_pictures_without_boxes_train(tiny_folder, tmp_path):
    """Fails if a folder of pictures, sentences and masks did not train, or masks of 0/1 and 0/255 differed."""
    lines = []
    for i in range(6):
        Image.fromarray(photo(40, 50, i)).save(tmp_path / f"{i}.png")
        mask = np.zeros((40, 50), dtype=np.uint8)
        mask[5:20, 5 : 10 + i] = 255 if i % 2 else 1
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
        lines.append(
            json.dumps({"image": f"{i}.png", "sentences": ["the square", "the red object"], "mask": f"{i}_mask.png"})
        )
    for part in ("train", "val"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    samples = read_own(tmp_path, "train")
    assert {int(one.mask(one.image()).max()) for one in samples} == {1}
    changes = [*SHORT, "data.set=own", "epochs=1", "steps=1", "batch=2", "warmup_epochs=0.5"]
    options = [part for change in changes for part in ("--set", change)]
    code, said, line = run("train", "--data", tmp_path, "--model", tiny_folder, "--output", tmp_path / "run", *options)
    assert code == 0, line
    assert "val_mIoU" in said and (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_need_11_a_batch_in_sams_decoder(tiny):
    """Fails if pictures with a sentence each mixed in the decoder, which upstream repeats for every prompt."""
    embedding, prompts = torch.randn(3, 32, 6, 6), torch.randn(3, 8, 32)
    with torch.no_grad():
        together = tiny.decode(embedding, prompts)
        assert together.logits.shape == (3, 1, 48, 48)
        for row in range(3):
            alone = tiny.decode(embedding[row : row + 1], prompts[row : row + 1])
            assert torch.allclose(together.logits[row], alone.logits[0], atol=1e-4)


def test_need_12_sentences_about_places_are_counted_apart():
    """Fails if places were not reported beside looks, or turned directions were no control. (Values: the ledger.)"""
    measured = sibling("test_claims").measured

    found = {one.claim: one for one in judge(measured())}
    assert "directions turned round" in found["mini-directions"].detail
    assert "look P@0.5" in found["mini-layer-wise"].more["table"][0]


def test_need_13_how_long_an_expression_takes():
    """Fails if the bench or the README did not say that the encoder runs once for every expression."""
    code, said, _ = run("bench", "--help")
    assert code == 0 and "once for every expression" in " ".join(said.split()).replace(
        "encoder runs once for", "encoder runs once for"
    )
    assert "once for every picture and sentence" in README


def test_need_14_sentences_that_mean_nothing_in_the_picture():
    """Fails if a sentence without a target were scored as another: ReLA's worked example."""
    samples = [Overlap(30, 60, 45, 45), Overlap(0, 40, 0, 40), Overlap(0, 0, 0, 0), Overlap(0, 10, 10, 0)]
    scores = general_scores(samples)
    assert (scores["gIoU"], round(scores["cIoU"], 2)) == (37.5, 27.27)
    assert (scores["N-acc"], scores["T-acc"]) == (50.0, 50.0)


def test_need_15_no_cuda_no_download(tiny_folder):
    """Fails if a local folder needed the network, or importing changed cuDNN's switch, as the released code does."""
    lines = f"""
import torch
before = torch.backends.cudnn.enabled
import numpy, dit_sam
predictor = dit_sam.DitPredictor.from_pretrained({str(tiny_folder)!r})
predictor.set_image(numpy.zeros((20, 30, 3), dtype=numpy.uint8))
assert predictor.predict(text="the square").masks.shape == (1, 20, 30)
assert torch.backends.cudnn.enabled == before
"""
    offline = {**environment(), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, env=offline, check=False)
    assert done.returncode == 0, done.stderr


def sibling(name):
    """Another test file of this folder; other packages have files of the same names."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location(f"dit_sam_{name}", Path(__file__).parent / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
