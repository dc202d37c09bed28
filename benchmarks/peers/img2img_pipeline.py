"""diffusers' own image-to-image pipeline under its own tests, with a tokenizer made here.

Tests of pictures' exact numbers are left out: they hold for the tokenizer on the hub.
"""

from types import SimpleNamespace

from peer_tokenizers import clip
from tests.pipelines.stable_diffusion import test_stable_diffusion_img2img as img2img
from tests.pipelines.stable_diffusion.ip_adapter_tester import IPAdapterTesterMixin
from tests.pipelines.testing_utils import MemoryTesterMixin, PipelineTesterMixin
from tests.pipelines.testing_utils.lora import LoraTesterMixin, UNetLoraTesterMixin

# As their tests name it: the class itself stays as it is.
img2img.CLIPTokenizer = SimpleNamespace(from_pretrained=lambda name: clip())


Config = img2img.StableDiffusionImg2ImgPipelineTesterConfig


class TheirsPipeline(Config, PipelineTesterMixin):
    test_pipeline_interrupt = img2img.TestStableDiffusionImg2ImgPipeline.test_pipeline_interrupt

    def test_inference_batch_single_identical(self):
        PipelineTesterMixin.test_inference_batch_single_identical(self, expected_max_diff=3e-3)

    def test_encode_prompt_works_in_isolation(self):
        PipelineTesterMixin.test_encode_prompt_works_in_isolation(
            self, {"device": "cpu", "do_classifier_free_guidance": True}
        )


class TheirsMemory(Config, MemoryTesterMixin):
    pass


class TheirsIPAdapter(Config, IPAdapterTesterMixin):
    pass


class TheirsLora(Config, LoraTesterMixin):
    pass


class TheirsUNetLora(Config, UNetLoraTesterMixin):
    pass
