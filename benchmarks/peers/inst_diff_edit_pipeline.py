"""InstDiffEdit under diffusers' common pipeline tests: the models of their image-to-image tests, edited in one stage.

Half of two steps would be one; four steps give two, as theirs run at their strength of 0.8.
"""

import img2img_pipeline as img2img
from tests.pipelines.pipeline_params import TEXT_GUIDED_IMAGE_VARIATION_BATCH_PARAMS

from inst_diff_edit import InstDiffEditPipeline

# Theirs take the picture's size; ours the models', unless told.
OPTIONS = {"num_inference_steps": 4, "final": "latents", "num_masks": 1, "height": 32, "width": 32}
OURS = ("unet", "scheduler", "vae", "text_encoder", "tokenizer", "feature_extractor", "image_encoder")


class OurConfig(img2img.Config):
    pipeline_class = InstDiffEditPipeline
    batch_input_params = TEXT_GUIDED_IMAGE_VARIATION_BATCH_PARAMS

    def get_dummy_components(self, time_cond_proj_dim=None):
        taken = InstDiffEditPipeline._get_signature_types()
        parts = super().get_dummy_components(time_cond_proj_dim)
        # Attention at half the latent's edge, where theirs at 512 pixels have a quarter.
        return {name: parts[name] for name in OURS if name in taken} | {"attention_stride": 2}

    def get_dummy_inputs(self):
        return super().get_dummy_inputs() | OPTIONS


class OursPipeline(OurConfig, img2img.PipelineTesterMixin):
    test_pipeline_interrupt = img2img.TheirsPipeline.test_pipeline_interrupt
    test_inference_batch_single_identical = img2img.TheirsPipeline.test_inference_batch_single_identical
    test_encode_prompt_works_in_isolation = img2img.TheirsPipeline.test_encode_prompt_works_in_isolation


class OursMemory(OurConfig, img2img.MemoryTesterMixin):
    pass


class OursIPAdapter(OurConfig, img2img.IPAdapterTesterMixin):
    pass
