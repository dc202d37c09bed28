"""The predictor: SAM's two verbs with text, geometry, what is kept, what is refused."""

import threading

import numpy as np
import pytest
import torch
from dit_sam_tiny import VARIANTS, tiny_model
from PIL import Image

from dit_sam.frame import fit, foreground, to_picture
from dit_sam.predictor import DitPredictor
from tenfold import UserError

TEXTS = ["the leftmost red circle", "the square", "the top blue object"]


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_sentences_are_as_many_calls(variant):
    """Fails if sentences of one call reached each other, also beyond one pass, or a kept sentence were another's."""
    predictor = DitPredictor(tiny_model(variant), batch_size=2)
    predictor.set_image(photo(40, 60))
    together = predictor.predict(text=TEXTS, return_logits=True)
    for i, text in enumerate(TEXTS):
        alone = DitPredictor(predictor.model)
        alone.set_image(photo(40, 60))
        logits, scores, low_res = alone.predict(text=text, return_logits=True)
        assert np.allclose(together.masks[i], logits[0], atol=1e-4)
        assert np.allclose(together.scores[i], scores[0], atol=1e-4)
        assert np.allclose(together.low_res[i], low_res[0], atol=1e-4)


def test_a_prediction_is_used_like_sams_tuple(tiny):
    """Fails if it only unpacks: people write ``predict(...)[0]``."""
    predictor = DitPredictor(tiny)
    predictor.set_image(photo(40, 60))
    prediction = predictor.predict(text="a red square")
    masks, scores, low_res = prediction
    assert len(prediction) == 3 and prediction[0] is masks and prediction[1] is scores and prediction[-1] is low_res


def test_pictures_of_other_sizes_in_one_call(tiny):
    """Fails if a picture got another one's frame or sentences."""
    predictor = DitPredictor(tiny)
    images = [photo(40, 60), photo(33, 20, 1)]
    predictor.set_images(images)
    both = predictor.predict(text=[TEXTS[:2], TEXTS[2:]])
    for image, texts, prediction in zip(images, (TEXTS[:2], TEXTS[2:]), both, strict=True):
        predictor.set_image(image)
        alone = predictor.predict(text=texts)
        assert prediction.masks.shape == (len(texts), *image.shape[:2])
        assert (prediction.masks == alone.masks).all()


@pytest.mark.parametrize("size", [(30, 90), (90, 30)])
@pytest.mark.parametrize("protocol", ["smooth", "official"])
def test_a_square_comes_back_where_it_was(size, protocol):
    """Fails if rows and columns, or the padding of portrait and landscape, were mixed up: within a pixel of the
    square.
    """
    height, width = size
    frame = fit(height, width, 48)
    truth = np.zeros((height, width), dtype=bool)
    truth[9:21, 12:27] = True
    shown = Image.fromarray(truth).convert("L").resize((frame.inner_width, frame.inner_height), Image.Resampling.BOX)
    square = torch.full((48, 48), -9.0)
    frame.cut(square).copy_(torch.from_numpy(np.array(shown)).float() / 255 * 18 - 9)
    mask = (
        foreground((square > 0).numpy(), frame) if protocol == "official" else (to_picture(square, frame) > 0).numpy()
    )
    rows, columns = np.nonzero(mask)
    reach = 2 * max(height, width) / 48 + 1
    assert abs(rows.min() - 9) <= reach and abs(rows.max() - 20) <= reach
    assert abs(columns.min() - 12) <= reach and abs(columns.max() - 26) <= reach


def test_low_res_logits_say_where_the_picture_is(tiny):
    """Fails if the box did not cut the picture out of the padded logits."""
    predictor = DitPredictor(tiny)
    predictor.set_image(photo(20, 60))
    prediction = predictor.predict(text=TEXTS[0])
    assert prediction.low_res.shape == (1, 24, 24)
    assert prediction.low_res_box == (0, 8, 24, 16)


def test_what_is_kept_of_sentences_is_bounded(tiny, monkeypatch):
    """Fails if the store of sentences grew without bound, or dropped one that a call needs."""
    monkeypatch.setattr("dit_sam.predictor.KEPT_SENTENCES", 2)
    predictor = DitPredictor(tiny)
    predictor.set_image(photo(20, 20))
    predictor.predict(text=TEXTS)
    assert len(predictor._texts) == 3
    predictor.predict(text=TEXTS[0])
    assert len(predictor._texts) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "a", "point_coords": np.zeros((1, 2))}, "point_coords: these models were trained with text alone"),
        ({"text": "a", "box": np.zeros(4)}, "box"),
        ({"text": "a", "mask_input": np.zeros((1, 4, 4))}, "mask_input"),
        ({"text": "a", "multimask_output": True}, "multimask_output"),
        ({"text": " "}, "an empty sentence"),
        ({"text": []}, "no sentence"),
        ({}, "no text"),
        ({"text": "a", "threshold": 1.5}, "threshold 1.5"),
    ],
)
def test_what_was_not_trained_is_refused(tiny, arguments, words):
    """Fails if another prompt than text, or none, were taken in silence."""
    predictor = DitPredictor(tiny)
    predictor.set_image(photo(20, 20))
    with pytest.raises(UserError, match=words):
        predictor.predict(**arguments)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3)), "array float64"),
        (np.zeros((4, 4), dtype=np.uint8), "array uint8"),
        (np.zeros((2000, 1, 3), dtype=np.uint8), "1 x 2000"),
        ("missing.png", "no such image"),
    ],
)
def test_pictures_that_are_none_are_refused(tiny, image, words):
    """Fails if floats, grey arrays or pictures without width were taken."""
    with pytest.raises(UserError, match=words):
        DitPredictor(tiny).set_image(image)


def test_no_picture_and_no_embedding_are_said(tiny):
    """Fails if predict ran without a picture, or an embedding that depends on the sentence were given as SAM's."""
    predictor = DitPredictor(tiny)
    with pytest.raises(UserError, match="set_image first"):
        predictor.predict(text="the square")
    predictor.set_image(photo(20, 20))
    with pytest.raises(UserError, match="no embedding of a picture alone"):
        predictor.get_image_embedding()
    default = DitPredictor(tiny_model("default"))
    default.set_image(photo(20, 20))
    assert default.get_image_embedding().shape == (1, 32, 6, 6)
    default.reset_image()
    assert not default.is_image_set


def test_the_default_variant_encodes_a_picture_once(monkeypatch):
    """Fails if the baseline's embedding were computed for every sentence."""
    predictor = DitPredictor(tiny_model("default"))
    calls = []
    encode = predictor.model.image_encoder.encode
    monkeypatch.setattr(predictor.model.image_encoder, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    predictor.set_image(photo(20, 20))
    predictor.predict(text=TEXTS)
    predictor.predict(text=TEXTS[0])
    assert len(calls) == 1


def test_two_threads_are_told_apart(tiny):
    """Fails if a second thread reached into a predictor at work."""
    predictor = DitPredictor(tiny)
    predictor.set_image(photo(20, 20))
    problems = []

    def other():
        try:
            predictor.set_image(photo(20, 20))
        except UserError as error:
            problems.append(str(error))

    with predictor._alone():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "two threads" in problems[0]


def test_exif_orientation_of_files_is_applied(tiny, tmp_path):
    """Fails if a file turned by EXIF were shown lying."""
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(photo(20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    predictor = DitPredictor(tiny)
    predictor.set_image(tmp_path / "turned.jpg")
    assert predictor.original_size == (30, 20)
