"""InstDiffEdit under diffusers' common pipeline tests: the models of their image-to-image tests, edited in one stage.

Half of two steps would be one; four steps give two, as theirs run at their strength of 0.8.
"""

import diffusers
import img2img_pipeline as img2img
from peer_tokenizers import clip
from tests.pipelines.pipeline_params import TEXT_GUIDED_IMAGE_VARIATION_BATCH_PARAMS

from inst_diff_edit import InstDiffEditPipeline, split_words

# Theirs take the picture's size; ours the models', unless told.
OPTIONS = {"num_inference_steps": 4, "final": "latents", "num_masks": 1, "height": 32, "width": 32}
OURS = ("unet", "scheduler", "vae", "text_encoder", "tokenizer", "feature_extractor", "image_encoder")


class OurConfig(img2img.Config):
    pipeline_class = InstDiffEditPipeline
    batch_input_params = TEXT_GUIDED_IMAGE_VARIATION_BATCH_PARAMS

    def get_dummy_components(self, time_cond_proj_dim=None):
        parts = super().get_dummy_components(time_cond_proj_dim)
        # Attention at half the latent's edge, where theirs at 512 pixels have a quarter.
        return {name: parts[name] for name in OURS} | {"inpaint": None, "attention_stride": 2}

    def get_dummy_inputs(self):
        return super().get_dummy_inputs() | OPTIONS


class PromptFirst(InstDiffEditPipeline):
    """With theirs' order of arguments and strength: their test of interruption calls with the prompt alone in front."""

    def __call__(self, prompt, **options):
        return super().__call__(prompt=prompt, **{**OPTIONS, "strength": 0.8, **options})


class OursPipeline(OurConfig, img2img.PipelineTesterMixin):
    test_inference_batch_single_identical = img2img.TheirsPipeline.test_inference_batch_single_identical

    def test_pipeline_interrupt(self):
        self.pipeline_class = PromptFirst
        img2img.TheirsPipeline.test_pipeline_interrupt(self)

    def test_encode_prompt_works_in_isolation(self, monkeypatch):
        # The test looks the class up among diffusers' own. Embeddings do not say where their words are; `words` does.
        monkeypatch.setattr(diffusers.pipelines, "InstDiffEditPipeline", InstDiffEditPipeline, raising=False)
        inputs = self.get_dummy_inputs
        words = split_words(clip(), inputs()["prompt"])
        monkeypatch.setattr(self, "get_dummy_inputs", lambda: inputs() | {"words": words})
        img2img.TheirsPipeline.test_encode_prompt_works_in_isolation(self)


class OursMemory(OurConfig, img2img.MemoryTesterMixin):
    pass


class OursIPAdapter(OurConfig, img2img.IPAdapterTesterMixin):
    pass


class OursLora(OurConfig, img2img.LoraTesterMixin):
    pass


class OursUNetLora(OurConfig, img2img.UNetLoraTesterMixin):
    pass
