"""Folders in Stable Diffusion's layout: loading them as they are released, and finishing with the inpainting model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import LMSDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from safetensors.torch import load_file, save_file

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.checkpoints.load import fingerprints, load_pipeline, model_source
from inst_diff_edit.checkpoints.settings import ModelSettings
from inst_diff_edit.evaluation.edit import edit
from inst_diff_edit.evaluation.run import edit_batch
from inst_diff_edit.evaluation.settings import EvalSettings, MethodSettings
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import InstDiffEditPipeline
from inst_diff_edit.sampling import noise_seeds
from tenfold import UserError
from tenfold.data.formats.editing import EditRecord, EditSample
from tenfold.data.formats.records import Picture

EDGE = 128
PROMPT = "a photo of a Husky on a mountain"


@pytest.fixture(scope="module")
def settings(folders):
    models = {"model": str(folders / "sd"), "inpaint": str(folders / "inpainting")}
    return MethodSettings(**models, steps=4, size=EDGE, num_masks=2)


@pytest.fixture(scope="module")
def pipe(settings):
    return load_pipeline(settings)


def pictures(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (150, 130, 3), dtype=np.uint8)) for _ in range(count)]


def generators(count):
    return [torch.Generator().manual_seed(100 + number) for number in range(count)]


def test_a_folder_of_stable_diffusion_loads_as_it_is(pipe, settings):
    """Without a safety checker; the authors' scheduler takes PNDM's place. Fails if PNDM's spacing of steps is kept."""
    assert isinstance(pipe.scheduler, LMSDiscreteScheduler) and pipe.vae_scale_factor == 8
    pipe.scheduler.set_timesteps(50)
    assert pipe.scheduler.timesteps[25].item() == pytest.approx(489.306, abs=1e-3)
    # The inpainting model keeps the scheduler of its own folder.
    assert isinstance(pipe.inpaint.scheduler, PNDMScheduler) and pipe.inpaint.unet.config.in_channels == 9
    assert pipe.inpaint.safety_checker is None and set(fingerprints(settings)) == {"model", "inpaint"}


def test_another_pipeline_s_models_are_shared(folders):
    """And its scheduler stays its own. Fails if a part is loaded again, or not handed on."""
    index = folders / "sd" / "model_index.json"
    theirs = StableDiffusionPipeline.from_pretrained(index.parent, safety_checker=None, requires_safety_checker=False)
    ours = InstDiffEditPipeline.from_pipe(theirs)
    assert (ours.unet, ours.vae, ours.text_encoder) == (theirs.unet, theirs.vae, theirs.text_encoder)
    assert isinstance(ours.scheduler, LMSDiscreteScheduler) and isinstance(theirs.scheduler, PNDMScheduler)
    assert InstDiffEditPipeline.from_pipe(ours, attention_stride=2).config.attention_stride == 2


def test_a_release_s_safety_checker_and_feature_extractor_are_not_loaded(folders, tmp_path):
    """The index names them and the folder may lack them. Fails if a pipeline asks for what it never uses."""
    for name in ("sd", "inpainting"):
        shutil.copytree(folders / name, tmp_path / name)
        path = tmp_path / name / "model_index.json"
        index = json.loads(path.read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
        path.write_text(json.dumps(index))
    pipe = load_pipeline(ModelSettings(model=str(tmp_path / "sd"), inpaint=str(tmp_path / "inpainting")))
    parts = {name for name, part in pipe.components.items() if part is not None}
    assert parts == {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "inpaint"}
    assert pipe.inpaint.feature_extractor is None and pipe.inpaint.safety_checker is None


def test_the_inpainting_model_gets_the_last_mask_and_the_squashed_picture(pipe, settings, monkeypatch):
    """Fails if the mask is inverted, another step's, or the picture keeps its size."""
    seen = {}
    inpaint = pipe.inpaint.__call__

    class Sees:
        def __call__(self, *args, **kwargs):
            seen.update(kwargs)
            return inpaint(*args, **kwargs)

    monkeypatch.setattr(pipe, "inpaint", Sees())
    (picture,) = pictures(1)
    found = edit(pipe, [picture], [PROMPT], settings, generators(1))
    last = Image.fromarray(found.step_masks[0, -1].numpy()).resize((EDGE, EDGE))
    (handed,) = seen["mask_image"]
    assert np.array_equal(np.asarray(handed), np.asarray(last)) and handed.mode == "L"
    assert np.array_equal(np.asarray(seen["image"][0]), np.asarray(picture.resize((EDGE, EDGE))))
    assert found.images[0].size == found.masks[0].size == (EDGE, EDGE)


def test_a_batch_through_inpainting_is_its_pictures_one_by_one(pipe, settings):
    """A generator for each. Fails if noises of the mask stage or of inpainting come from one stream."""
    several, own = pictures(2), generators(2)
    together = edit(pipe, several, [PROMPT, "a mountain"], settings, own)
    for row, prompt in enumerate((PROMPT, "a mountain")):
        alone = edit(pipe, [several[row]], [prompt], settings, [generators(2)[row]])
        assert torch.equal(together.step_masks[row], alone.step_masks[0])
        ours, theirs = (np.asarray(found).astype(int) for found in (together.images[row], alone.images[0]))
        assert abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_only_the_masked_part_is_new_to_the_inpainting_model(pipe, settings, value, monkeypatch):
    """With no mask it sees the whole picture, with a full one nothing of it. Fails if black and white are exchanged."""
    seen = []
    encode = pipe.inpaint.vae.encode
    monkeypatch.setattr(pipe.inpaint.vae, "encode", lambda x, *a, **k: seen.append(x) or encode(x, *a, **k))
    painted = torch.full((1, EDGE, EDGE), 255 * int(value), dtype=torch.uint8)
    (picture,) = pictures(1)
    options = {"num_inference_steps": 2}
    pipe._inpaint([picture], [PROMPT], painted, EDGE, EDGE, generators(1), "pil", options)
    masked = seen[-1][0]
    squashed = torch.from_numpy(np.asarray(picture.resize((EDGE, EDGE)))).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(masked, squashed * (1 - value), atol=1e-5)


def test_a_picture_s_latent_is_a_scaled_sample_of_what_the_autoencoder_says(pipe):
    """Each from its own generator. Fails without the spread or the scale, or if one generator serves both pictures."""
    several = pictures(2)
    with torch.no_grad():
        found = pipe._encode_images(several, EDGE, EDGE, generators(2))
        said = pipe.vae.encode(to_tensor(several, EDGE, EDGE)).latent_dist
    drawn = torch.cat([torch.randn(said.mean[:1].shape, generator=own) for own in generators(2)])
    assert torch.allclose(found, 0.18215 * (said.mean + said.std * drawn), atol=1e-6)
    with torch.no_grad():
        back, golden = pipe._decode(found), pipe.vae.decode(found / 0.18215).sample
    assert torch.allclose(back, golden, atol=1e-5)


def test_noises_do_not_depend_on_whether_latents_are_given(pipe, settings):
    """The generator's first numbers are their seeds. Fails if the autoencoder's sample is drawn before them."""
    options = {"num_inference_steps": 4, "num_masks": 2, "height": EDGE, "width": EDGE, "output_type": "latent"}
    own = generators(1)[0]
    noise_seeds(own, 2)
    with torch.no_grad():
        latents = pipe._encode_images(pictures(1), EDGE, EDGE, [own])
    ours = pipe(pictures(1), PROMPT, generator=generators(1)[0], image_latents=latents, **options)
    theirs = pipe(pictures(1), PROMPT, generator=generators(1)[0], **options)
    assert torch.equal(ours.images, theirs.images)


def test_inpainting_gets_its_options_and_the_negative_prompt(pipe, monkeypatch):
    """Fails if one of them is dropped, or the caller's own negative prompt for inpainting is overruled."""
    seen = []

    class Sees:
        def __call__(self, *args, **kwargs):
            seen.append(kwargs)
            return type("Output", (), {"images": kwargs["image"]})

    monkeypatch.setattr(pipe, "inpaint", Sees())
    options = {"num_inference_steps": 4, "num_masks": 1, "height": EDGE, "width": EDGE, "negative_prompt": "fog"}
    pipe(pictures(1), PROMPT, inpaint_options={"num_inference_steps": 3}, **options)
    pipe(pictures(1), PROMPT, inpaint_options={"negative_prompt": ["rain"]}, **options)
    assert seen[0]["num_inference_steps"] == 3 and seen[0]["negative_prompt"] == ["fog"]
    assert seen[1]["negative_prompt"] == ["rain"] and "num_inference_steps" not in seen[1]


def test_a_model_s_precision_is_the_one_asked_for(settings):
    """Fails if the dtype is not handed on."""
    pipe = load_pipeline(settings.model_copy(update={"dtype": "bfloat16"}))
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.inpaint.unet)
    assert {part.dtype for part in parts} == {torch.bfloat16}


def test_a_hub_id_is_handed_on_and_other_names_are_refused(monkeypatch, tmp_path):
    """Fails if a path that does not exist is looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    assert model_source("CompVis/stable-diffusion-v1-4") == "CompVis/stable-diffusion-v1-4"
    for name in ("nowhere", "a/b/c", "./a/b", "/a/b", "~/b", "../b"):
        with pytest.raises(UserError, match="no such model"):
            model_source(name)


def test_diffedit_s_mask_is_finished_by_inpainting_too(pipe, folders):
    record = EditRecord("1", "1.jpg", "a mountain", "a Husky", "a mountain", "a photo of a Husky")
    chosen = EvalSettings(
        model="x", inpaint="y", method="diffedit", steps=4, size=EDGE, diffedit_noises=2, data=str(folders)
    )
    ((edited, mask, facts),) = edit_batch(pipe, [EditSample(record, Picture(pictures(1)[0]), None)], chosen, 0)
    assert edited.size == (EDGE, EDGE) and mask.size == (EDGE // 8, EDGE // 8) and 0 < facts["mask_share"] < 1


def test_a_processor_s_own_keywords_reach_it_through_the_recorder(pipe):
    """As an IP adapter's masks do: diffusers drops keywords that a processor's signature does not name.

    Fails if the recorder shows a signature of its own.
    """
    seen = []

    class Masked(AttnProcessor2_0):
        def __call__(self, attn, hidden, encoder_hidden_states=None, attention_mask=None, temb=None, extra_masks=None):
            seen.append(extra_masks)
            return super().__call__(attn, hidden, encoder_hidden_states, attention_mask, temb)

    before = pipe.unet.attn_processors
    count = len(before)
    pipe.unet.set_attn_processor(Masked())
    recorder = AttentionRecorder(pipe.unet)
    recorder.expect(16, 16)
    text = torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
    with recorder, torch.no_grad():
        given = {"extra_masks": "masks"}
        pipe.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=text, cross_attention_kwargs=given)
        recorder.finish_step()
    pipe.unet.set_attn_processor(before)
    assert seen == ["masks"] * count and recorder.steps == 1


def test_offloading_edits_with_the_same_bits(settings, pipe):
    """Where there is no GPU, the CPU stands in. Fails if a model stays on another device, or nothing is offloaded."""
    models = {"model": settings.model, "inpaint": settings.inpaint}
    offloaded = load_pipeline(ModelSettings(**models, offload=True, device="cpu"))
    parts = (offloaded.unet, offloaded.vae, offloaded.text_encoder, offloaded.inpaint.unet)
    assert all(hasattr(part, "_hf_hook") for part in parts)
    ours, theirs = (edit(one, pictures(1), [PROMPT], settings, generators(1)).images[0] for one in (offloaded, pipe))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_transformer_is_refused_by_name(folders, tmp_path):
    """And so are weights of another shape."""
    shutil.copytree(folders / "sd", tmp_path / "sd")
    file = tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :3].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(ModelSettings(model=str(tmp_path / "sd")))


def test_a_model_that_the_method_cannot_serve_is_named_by_its_folder(folders):
    """Fails if the folder is not named."""
    with pytest.raises(UserError, match=r"a UNet of 9 input channels: .*inpainting \(expected a base model"):
        load_pipeline(ModelSettings(model=str(folders / "inpainting")))


@pytest.mark.slow
def test_a_compiled_unet_edits_alike(settings):
    """A smoke test: traced by dynamo, run without a code generator."""
    compiled = load_pipeline(settings)
    expected = edit(compiled, pictures(1), [PROMPT], settings, generators(1))
    compiled.unet.forward = torch.compile(compiled.unet.forward, backend="eager")
    found = edit(compiled, pictures(1), [PROMPT], settings, generators(1))
    assert (found.step_masks == expected.step_masks).float().mean() > 0.99


def test_a_trained_mini_model_opens_in_a_process_of_its_own(tmp_path):
    """Fails if only the shipped one, by its name, makes its autoencoder known to diffusers."""
    shutil.copytree(mini.path(), tmp_path / "model")
    code = (
        "from inst_diff_edit.checkpoints.load import ModelSettings, load_pipeline\n"
        f"print(type(load_pipeline(ModelSettings(model={str(tmp_path / 'model')!r})).vae).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "PixelAutoencoder", done.stderr
