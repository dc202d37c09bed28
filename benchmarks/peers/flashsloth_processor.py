"""FlashSloth's processor under transformers' common processor tests."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin

from flashsloth.miniature.model import mini_processor
from flashsloth.processing import FlashSlothProcessor


class OursProcessor(ProcessorTesterMixin, unittest.TestCase):
    processor_class = FlashSlothProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return mini_processor().tokenizer

    @classmethod
    def _setup_image_processor(cls):
        return mini_processor().image_processor

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 9, "num_queries": 4}
