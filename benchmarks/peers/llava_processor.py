"""transformers' own LLaVA processor under its own tests, with a tokenizer made here."""

from peer_tokenizers import llama
from tests.models.llava import test_processing_llava as llava
from transformers import CLIPImageProcessor


class TheirsProcessor(llava.LlavaProcessorTest):
    tiny_model_id = None

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = llama()
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        tokenizer.pad_token = tokenizer.unk_token
        return tokenizer

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor()
