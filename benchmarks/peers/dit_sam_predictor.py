"""The calls of segment-anything's predictor notebook, in its order, on a tiny SAM and on DIT's predictor.

Ours is told in words what SAM is shown by points, boxes and masks; where the notebook gives those, ours gets the same
call, and its refusal counts as a failure with a reason.
"""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from dit_sam.miniature.model import mini_config, mini_vocabulary
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor

HEIGHT, WIDTH = 40, 56
IMAGE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
POINT, LABEL = np.array([[20, 15]]), np.array([1])
BOX = np.array([10, 8, 40, 30])


def sam():
    """As `sam_model_registry` builds it, small enough for a second."""
    torch.manual_seed(0)
    assert set(sam_model_registry) >= {"vit_b", "vit_l", "vit_h"}
    encoder = ImageEncoderViT(
        img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, out_chans=32, use_rel_pos=True, window_size=2
    )
    prompts = PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32)
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder).eval()


def dit():
    """The mini model of the variant whose embedding of a picture is SAM's kind."""
    torch.manual_seed(0)
    return DITSam(mini_config("default"), mini_vocabulary()).eval()


class Notebook:
    """One call of the notebook a test."""

    def shown(self):
        predictor = self.predictor()
        predictor.set_image(IMAGE)
        return predictor

    def test_set_image_in_rgb_and_bgr(self):
        first, second = self.predictor(), self.predictor()
        first.set_image(IMAGE)
        second.set_image(np.ascontiguousarray(IMAGE[..., ::-1]), image_format="BGR")
        one, other = (one.predict(**self.what)[2] for one in (first, second))
        assert np.array_equal(one, other)

    def test_predict_before_an_image_is_refused(self):
        with pytest.raises(Exception, match="set_image"):
            self.predictor().predict(**self.what)

    def test_is_image_set_and_original_size(self):
        predictor = self.shown()
        assert predictor.is_image_set and tuple(predictor.original_size) == (HEIGHT, WIDTH)

    def test_reset_image(self):
        predictor = self.shown()
        predictor.reset_image()
        assert not predictor.is_image_set

    def test_device(self):
        assert torch.device(self.predictor().device).type == "cpu"

    def test_get_image_embedding(self):
        embedding = self.shown().get_image_embedding()
        assert embedding.ndim == 4 and len(embedding) == 1

    def test_one_mask(self):
        masks, scores, low = self.shown().predict(**self.what, multimask_output=False)
        assert masks.shape == (1, HEIGHT, WIDTH) and masks.dtype == bool
        assert scores.shape == (1,) and low.ndim == 3 and len(low) == 1

    def test_the_same_call_gives_the_same(self):
        predictor = self.shown()
        first, second = (predictor.predict(**self.what, multimask_output=False) for _ in range(2))
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))

    def test_logits_in_place_of_masks(self):
        predictor = self.shown()
        masks, _, _ = predictor.predict(**self.what, multimask_output=False)
        logits, _, _ = predictor.predict(**self.what, multimask_output=False, return_logits=True)
        assert logits.dtype == np.float32 and logits.shape == masks.shape
        assert np.array_equal(logits > self.border, masks)

    def test_a_second_picture_replaces_the_first(self):
        predictor = self.shown()
        predictor.set_image(IMAGE[:24])
        assert predictor.predict(**self.what, multimask_output=False)[0].shape == (1, 24, WIDTH)

    def test_by_a_point(self):
        masks, _, _ = self.shown().predict(point_coords=POINT, point_labels=LABEL, multimask_output=False)
        assert masks.shape == (1, HEIGHT, WIDTH)

    def test_three_masks_of_a_point(self):
        masks, scores, _ = self.shown().predict(point_coords=POINT, point_labels=LABEL, multimask_output=True)
        assert masks.shape == (3, HEIGHT, WIDTH) and scores.shape == (3,)

    def test_points_and_the_mask_of_a_call_before(self):
        predictor = self.shown()
        _, _, low = predictor.predict(**self.what, multimask_output=False)
        masks, _, _ = predictor.predict(
            point_coords=POINT, point_labels=LABEL, mask_input=low[:1], multimask_output=False
        )
        assert masks.shape == (1, HEIGHT, WIDTH)

    def test_a_point_outside(self):
        masks, _, _ = self.shown().predict(point_coords=POINT, point_labels=np.array([0]), multimask_output=False)
        assert masks.shape == (1, HEIGHT, WIDTH)

    def test_by_a_box(self):
        masks, _, _ = self.shown().predict(box=BOX[None], multimask_output=False)
        assert masks.shape == (1, HEIGHT, WIDTH)

    def test_by_a_box_and_a_point(self):
        masks, _, _ = self.shown().predict(point_coords=POINT, point_labels=LABEL, box=BOX, multimask_output=False)
        assert masks.shape == (1, HEIGHT, WIDTH)

    def test_several_boxes_in_one_pass(self):
        predictor = self.shown()
        boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(np.stack([BOX, BOX + 2])), (HEIGHT, WIDTH))
        masks, _, _ = predictor.predict_torch(None, None, boxes=boxes, multimask_output=False)
        assert masks.shape == (2, 1, HEIGHT, WIDTH)

    def test_a_batch_of_pictures_by_the_model(self):
        predictor = self.predictor()
        pixels = torch.from_numpy(predictor.transform.apply_image(IMAGE)).permute(2, 0, 1)
        boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(BOX[None]), (HEIGHT, WIDTH))
        batch = [{"image": pixels, "boxes": boxes, "original_size": (HEIGHT, WIDTH)}] * 2
        outputs = predictor.model(batch, multimask_output=False)
        assert [one["masks"].shape[-2:] for one in outputs] == [(HEIGHT, WIDTH)] * 2


class OursPredictor(Notebook):
    what = {"text": "the red square"}  # noqa: RUF012

    @property
    def border(self):
        """The logit of the model's threshold."""
        threshold = mini_config("default").threshold
        return np.float32(np.log(threshold / (1 - threshold)))

    def predictor(self):
        return DitPredictor(dit())


class TheirsPredictor(Notebook):
    what = {"point_coords": POINT, "point_labels": LABEL}  # noqa: RUF012
    border = 0

    def predictor(self):
        return SamPredictor(sam())
