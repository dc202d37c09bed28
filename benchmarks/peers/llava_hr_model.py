"""LLaVA-HR under transformers' common model and generation tests, with LLaVA's own tester as the example."""

import unittest
from typing import ClassVar

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.models.llava import test_modeling_llava as llava
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_pipeline_mixin import PipelineTesterMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from llava_hr.configuration import LlavaHrConfig, LlavaHrVisionConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration, LlavaHrModel
from tests import vlm_tester as vlm

SIDE = 64  # pixels: 4 visual tokens

# Their tests ask by name which model has no head, and so no loss, and which one takes labels.
MODEL_MAPPING_NAMES["llava_hr"] = "LlavaHrModel"
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["llava_hr"] = "LlavaHrForConditionalGeneration"


class Tester:
    """A tiny model and a batch of three rows that open with an image each."""

    batch_size, num_channels, image_size = 3, 3, SIDE
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    image_token_id, pad_token_id = 0, 1
    num_image_tokens = 4
    seq_length = encoder_seq_length = 7 + num_image_tokens
    is_training = True
    vision_config: ClassVar = {"num_hidden_layers": 4}  # by which tests count the tower's layers

    def get_config(self):
        text = {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 37,
            "max_position_embeddings": 512,
            "pad_token_id": self.pad_token_id,
        }
        low = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "image_size": 42,
            **self.vision_config,
            "patch_size": 14,
        }
        vision = LlavaHrVisionConfig(
            low_res_config=low,
            image_size=self.image_size,
            min_low_size=28,
            high_res_dims=[4, 6, 8, 12],
            high_res_depths=[1, 1, 2, 1],
        )
        return LlavaHrConfig(
            text_config=text, vision_config=vision, image_token_id=self.image_token_id, allow_missing_images=True
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 2) + 2
        input_ids[:, : self.num_image_tokens] = self.image_token_id
        return config, {
            "pixel_values": floats_tensor([self.batch_size, self.num_channels, SIDE, SIDE]),
            "input_ids": input_ids,
            "attention_mask": torch.ones(input_ids.shape, dtype=torch.long, device=torch_device),
        }


class OursModel(ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (LlavaHrModel, LlavaHrForConditionalGeneration)
    pipeline_model_mapping = {"image-text-to-text": LlavaHrForConditionalGeneration}  # noqa: RUF012
    _is_composite = True

    def setUp(self):
        self.model_tester = Tester()
        common = ["image_token_id", "projector_hidden_act"]
        self.config_tester = ConfigTester(
            self, config_class=LlavaHrConfig, has_text_modality=False, common_properties=common
        )

    test_config = llava.LlavaForConditionalGenerationModelTest.test_config
    test_mismatching_num_image_tokens = vlm.VLMModelTest.test_mismatching_num_image_tokens
