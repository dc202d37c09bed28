"""transformers' own LLaVA under its own tests: what ours stand beside."""

from tests.models.llava import test_modeling_llava as llava


class TheirsModel(llava.LlavaForConditionalGenerationModelTest):
    pass
