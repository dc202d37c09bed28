"""FlashSloth under transformers' common model and generation tests, with LLaVA's own tester as the example."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.models.llava import test_modeling_llava as llava
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_pipeline_mixin import PipelineTesterMixin
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from flashsloth.configuration import FlashSlothConfig
from flashsloth.modeling import FlashSlothForConditionalGeneration, FlashSlothModel
from tests import vlm_tester as vlm

SIDE = 42  # pixels: 6 x 6 patches, 4 visual tokens
SPECIAL = 10  # ids below it have a meaning of their own

# Their tests ask by name which model has no head, and so no loss.
MODEL_MAPPING_NAMES["flashsloth"] = "FlashSlothModel"


class Tester:
    """A tiny model and a batch of three rows: an image, a question, its queries, the role."""

    batch_size, num_channels, image_size = 3, 3, SIDE
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    image_token_id, pad_token_id, query_token_id, end_token_id = 0, 1, 2, 3
    dot_token_id, newline_token_id, user_token_ids = 4, 5, (6, 7)
    num_image_tokens, num_queries = 4, 2
    seq_length = encoder_seq_length = 7 + num_image_tokens
    is_training = True

    def get_config(self):
        text = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 37,
            "max_position_embeddings": 512,
            "pad_token_id": self.pad_token_id,
        }
        vision = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": self.image_size,
            "patch_size": 7,
            "vision_use_head": False,
        }
        ids = "image_token_id query_token_id end_token_id dot_token_id newline_token_id user_token_ids".split()
        return FlashSlothConfig(
            text_config=text,
            vision_config=vision,
            query_count=self.num_queries,
            embq_layer=1,
            **{name: getattr(self, name) for name in ids},
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - SPECIAL) + SPECIAL
        input_ids[:, : self.num_image_tokens] = self.image_token_id
        input_ids[:, -1 - self.num_queries : -1] = self.query_token_id
        return config, {
            "pixel_values": floats_tensor([self.batch_size, self.num_channels, SIDE, SIDE]),
            "input_ids": input_ids,
            "attention_mask": torch.ones(input_ids.shape, dtype=torch.long, device=torch_device),
        }


class OursModel(ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (FlashSlothModel, FlashSlothForConditionalGeneration)
    pipeline_model_mapping = {"image-text-to-text": FlashSlothForConditionalGeneration}  # noqa: RUF012
    _is_composite = True

    def setUp(self):
        self.model_tester = Tester()
        common = ["image_token_id", "query_count", "projector_hidden_act"]
        self.config_tester = ConfigTester(
            self, config_class=FlashSlothConfig, has_text_modality=False, common_properties=common
        )

    test_config = llava.LlavaForConditionalGenerationModelTest.test_config
    test_mismatching_num_image_tokens = vlm.VLMModelTest.test_mismatching_num_image_tokens
