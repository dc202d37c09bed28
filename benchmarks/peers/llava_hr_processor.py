"""LLaVA-HR's processor under transformers' common processor tests."""

import unittest

from peer_tokenizers import llama
from tests.test_processing_common import ProcessorTesterMixin

from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.processing import LlavaHrProcessor


class OursProcessor(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LlavaHrProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return llama()

    @classmethod
    def _setup_image_processor(cls):
        return LlavaHrImageProcessor(size=32)

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 4}
