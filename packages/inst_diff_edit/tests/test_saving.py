"""What a folder keeps, what a single file gives, and what two calls, two repositories or two parts may share."""

import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.checkpoints.load import load_pipeline
from inst_diff_edit.checkpoints.settings import ModelSettings
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import InstDiffEditPipeline
from inst_diff_edit.sampling import lms_scheduler
from tenfold import UserError
from tenfold.testing.processes import apart

SMALL = {"num_inference_steps": 4, "num_masks": 1, "height": 64, "width": 64}
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def edit(pipe, **changes):
    return pipe(PICTURE, "a Husky", **{**SMALL, "inpaint_options": {"num_inference_steps": 2}, **changes}).images


@pytest.fixture(scope="module")
def both(folders):
    """The tiny Stable Diffusion with its inpainting model."""
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd", inpaint=folders / "inpainting")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(both, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    both.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [InstDiffEditPipeline, DiffusionPipeline])
def test_a_saved_pipeline_keeps_its_inpainting_model(both, saved, kind):
    """Also under diffusers' general name, as diffusers' own pipelines do. Fails if it is left out of the index."""
    loaded = kind.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is InstDiffEditPipeline and loaded.inpaint.unet.config.in_channels == 9
    assert np.array_equal(edit(loaded, output_type="np"), edit(both, output_type="np"))


def test_an_inpainting_model_that_came_later_is_kept_too(folders, both, tmp_path):
    """Fails if diffusers' index says that there is none, as it does of a part that began as None."""
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd")
    pipe.set_progress_bar_config(disable=True)
    inner = StableDiffusionInpaintPipeline(**both.inpaint.components, requires_safety_checker=False)
    pipe.inpaint = inner
    assert inner._progress_bar_config == {"disable": True}
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "inpaint" / "unet" / "config.json").is_file()
    assert InstDiffEditPipeline.from_pretrained(tmp_path).inpaint is not None


def test_a_saved_inpainting_model_can_be_left_or_replaced(saved, folders, both):
    """And has the precision asked for. Fails if it is loaded all the same, or stays in float32."""
    assert InstDiffEditPipeline.from_pretrained(saved, inpaint=None).inpaint is None
    assert InstDiffEditPipeline.from_pretrained(saved, inpaint=both.inpaint).inpaint is both.inpaint
    half = InstDiffEditPipeline.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert {half.unet.dtype, half.inpaint.unet.dtype, half.inpaint.vae.dtype} == {torch.bfloat16}
    # The command loads what it is told, and a folder's code nowhere.
    assert load_pipeline(ModelSettings(model=str(saved))).inpaint is None
    index = saved / "inpaint" / "model_index.json"
    kept = index.read_text()
    index.write_text(kept.replace('"diffusers",', '"evil",', 1))
    try:
        with pytest.raises(UserError, match="is of evil"):
            load_pipeline(ModelSettings(model=str(saved)))
    finally:
        index.write_text(kept)


def test_parts_and_revision_are_of_the_base_model_alone(folders, both, monkeypatch):
    """Fails if the caller's UNet of four channels takes the place of the inpainting model's of nine."""
    seen, load = [], StableDiffusionInpaintPipeline.from_pretrained
    monkeypatch.setattr(
        StableDiffusionInpaintPipeline, "from_pretrained", lambda *a, **k: seen.append(k) or load(*a, **k)
    )
    options = {"unet": both.unet, "vae": both.vae, "attention_stride": 4, "revision": "fp16"}
    pipe = InstDiffEditPipeline.from_pretrained(
        folders / "sd", inpaint=folders / "inpainting", local_files_only=True, **options
    )
    assert pipe.unet is both.unet and pipe.vae is both.vae and pipe.inpaint.unet.config.in_channels == 9
    assert not set(options) & set(seen[0]) and seen[0]["local_files_only"]


def test_progress_bars_are_turned_off_in_both(both, capfd):
    """Fails if the inpainting model's stays."""
    edit(both)
    assert "it/s" not in capfd.readouterr().err
    both.set_progress_bar_config(disable=False)
    try:
        edit(both)
    finally:
        both.set_progress_bar_config(disable=True)
    assert capfd.readouterr().err.count("2/2") >= 2


@apart
def test_the_packaged_mini_model_opens_by_diffusers_means_alone():
    """Nothing of the package but the pipeline is imported before. Fails if diffusers does not find the autoencoder."""
    folder = mini.path()
    for name in [name for name in sys.modules if name.split(".")[0] == "inst_diff_edit"]:
        del sys.modules[name]
    from inst_diff_edit import InstDiffEditPipeline as Anew

    for kind in (Anew, DiffusionPipeline):
        pipe = kind.from_pretrained(folder)
        assert type(pipe) is Anew and type(pipe.vae).__name__ == "PixelAutoencoder"
    assert "inst_diff_edit.miniature.model" not in sys.modules


def original_layout(unet):
    """The weights of a UNet of diffusers under the names of the original code."""
    layers = unet.config.layers_per_block + 1
    inner = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
    inner |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    ends = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0"}
    ends |= {"time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2"}
    middle = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}

    def renamed(key):
        for name, original in ends.items():
            if key.startswith(f"{name}."):
                return key.replace(name, original, 1)
        side, *rest = key.split(".")
        if side == "mid_block":
            place, rest = middle[".".join(rest[:2])], rest[2:]
            kind = "resnets" if place != "middle_block.1" else "attentions"
        else:
            block, kind, number, *rest = rest
            at = int(block) * layers + (layers - 1 if "samplers" in kind else int(number))
            attends = hasattr(getattr(unet, side)[int(block)], "attentions")
            sub = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if attends else 1}[kind]
            place = f"input_blocks.{at + 1}.{sub}" if side == "down_blocks" else f"output_blocks.{at}.{sub}"
            if kind == "upsamplers":
                place = f"output_blocks.{int(block) * layers + layers - 1}.{sub}"
        tail = ".".join(rest)
        if kind == "resnets":
            first, _, last = tail.rpartition(".")
            tail = f"{inner[first]}.{last}"
        return f"{place}.{tail.replace('conv.', 'op.', 1) if kind == 'downsamplers' else tail}"

    return {f"model.diffusion_model.{renamed(key)}": value for key, value in unet.state_dict().items()}


def test_a_single_file_of_the_original_layout_is_opened(both, folders, tmp_path):
    """With an inpainting model beside it. Fails if our own arguments stop diffusers' loader."""
    file = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in original_layout(both.unet).items()}, file)
    parts = {"vae": both.vae, "text_encoder": both.text_encoder}
    pipe = InstDiffEditPipeline.from_single_file(
        file, config=str(folders / "sd"), inpaint=folders / "inpainting", local_files_only=True, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is both.vae and pipe.unet is not both.unet and pipe.inpaint.unet.config.in_channels == 9
    assert np.array_equal(edit(pipe, output_type="np"), edit(both, output_type="np"))


def test_an_autoencoder_without_a_distribution_serves(both, folders):
    """For several edits, too. Fails if a distribution is asked for, or what it says is scaled twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
        tiny = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks,
        )
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd", vae=tiny)
    pipe.set_progress_bar_config(disable=True)
    found = edit(pipe, final="latents", output_type="pt", num_images_per_prompt=2)
    assert pipe.vae_scale_factor == 8 and found.shape == (2, 3, 64, 64)
    zeros = {
        "callback_on_step_end": lambda p, s, t, tensors: {"mask": torch.zeros_like(tensors["mask"])},
        "callback_on_step_end_tensor_inputs": ["mask"],
    }
    kept = edit(pipe, final="latents", output_type="latent", **zeros)
    pixels = torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(kept, tiny.encode(pixels).latents, atol=1e-4)


def test_a_schedule_that_ends_in_pure_noise_is_kept(both):
    """The share of the picture at every level is the model's, also after saving. Fails if the replacement computes the
    schedule anew from its ends: 0.291 in place of 0.256 in the middle."""
    told = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = DDIMScheduler(**told, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = lms_scheduler(theirs)
    assert torch.allclose(ours.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1], rtol=1e-3, atol=1e-6)
    assert lms_scheduler(DDIMScheduler(**told)).alphas_cumprod[489] - ours.alphas_cumprod[489] > 0.03
    assert ours.config.prediction_type == "v_prediction" and ours.sigmas.isfinite().all()
    assert 0 < ours.alphas_cumprod[-1] < 1e-7
    for again in (type(ours).from_config(ours.config), lms_scheduler(ours)):
        assert torch.allclose(again.alphas_cumprod, ours.alphas_cumprod, rtol=1e-3, atol=1e-9)
    pipe = InstDiffEditPipeline.from_pipe(both, scheduler=theirs, inpaint=None)
    pipe.set_progress_bar_config(disable=True)
    assert edit(pipe, final="latents", output_type="latent", strength=1.0).isfinite().all()


def test_a_scheduler_without_such_a_schedule_is_refused():
    """As of flow matching. Fails if the replacement makes one up."""
    with pytest.raises(UserError, match="no schedule of noise: FlowMatchEulerDiscreteScheduler"):
        lms_scheduler(FlowMatchEulerDiscreteScheduler())


def test_a_second_call_on_a_unet_at_work_is_refused_and_the_first_one_is_not_disturbed(pipe, edits, settings):
    """From another thread, by another pipeline or the same one. Fails if attention of both is mixed, if a setting of
    the first is changed, or if a processor stays behind."""
    options = {**settings, "output_type": "latent"}
    expected = pipe(edits[0].picture(), edits[0].prompt, **options)
    other = InstDiffEditPipeline.from_pipe(pipe)
    apart_from_it = mini.build(0)
    for one in (other, apart_from_it):
        one.set_progress_bar_config(disable=True)
    processors = dict(pipe.unet.attn_processors)
    at_work, go_on, found = threading.Event(), threading.Event(), []

    def wait(pipe, step, timestep, tensors):
        at_work.set()
        assert go_on.wait(60)
        return {}

    def first():
        found.append(pipe(edits[0].picture(), edits[0].prompt, callback_on_step_end=wait, **options))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert at_work.wait(60)
        for second in (other, pipe):
            with pytest.raises(UserError, match="already recording for another call: UNet2DConditionModel") as refusal:
                second(edits[1].picture(), edits[1].prompt, guidance_scale=1.0, **{**options, "num_inference_steps": 6})
            assert len(str(refusal.value).splitlines()) == 1
        alone = apart_from_it(edits[0].picture(), edits[0].prompt, **options)
    finally:
        go_on.set()
        thread.join()
    assert torch.equal(found[0].images, expected.images) and torch.equal(found[0].masks, expected.masks)
    assert torch.equal(alone.images, expected.images)
    assert pipe.unet.attn_processors == processors
    assert torch.equal(other(edits[0].picture(), edits[0].prompt, **options).images, expected.images)


def test_a_unet_is_free_again_after_an_attempt_that_failed(pipe, monkeypatch):
    """Fails if a processor that cannot be wrapped leaves the UNet claimed, or some of its layers wrapped."""
    recorder = AttentionRecorder(pipe.unet, mini.STRIDE)
    processors = dict(pipe.unet.attn_processors)
    last = list(recorder.layers.values())[-1]
    monkeypatch.setattr(last, "set_processor", lambda processor: 1 / 0)
    with pytest.raises(ZeroDivisionError), recorder:
        pass
    monkeypatch.undo()
    assert pipe.unet.attn_processors == processors
    with recorder:
        pass


def test_a_unet_for_inpainting_is_refused_where_the_base_model_s_belongs(folders):
    """Fails if a part that is handed over is not looked at."""
    unet = UNet2DConditionModel.from_pretrained(folders / "inpainting", subfolder="unet")
    with pytest.raises(UserError, match="a UNet of 9 input channels"):
        InstDiffEditPipeline.from_pretrained(folders / "sd", unet=unet)
