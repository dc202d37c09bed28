"""The pipeline: what must hold for any weights."""

import numpy as np
import pytest
import torch
from diffusers import LMSDiscreteScheduler, UNet2DConditionModel
from PIL import Image

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.evaluation.baselines import sdedit
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import SEED, InstDiffEditPipeline
from inst_diff_edit.sampling import NoiseLevels, noise_seeds, noises, start_index
from tenfold import UserError


def run(pipe, edit, settings, **changes):
    return pipe(edit.picture(), edit.prompt, **{**settings, **changes})


def force_mask(value):
    def callback(pipe, step, timestep, tensors):
        return {"mask": torch.full_like(tensors["mask"], value)}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["mask"]}


def test_a_mask_of_zeros_returns_the_original(pipe, edits, settings):
    """At matched noise levels the last one is no noise at all. Fails if the blend's sides are exchanged."""
    found = run(pipe, edits[0], settings, output_type="latent", **force_mask(0.0))
    original = to_tensor([edits[0].picture()], 32, 32)
    assert torch.allclose(found.images, original, atol=1e-6)


def test_the_authors_blend_leaves_the_last_level_s_noise_outside_of_the_mask(pipe, edits, settings):
    """Fails if matched_noise=False blends at the level after the step."""
    options = {**settings, "matched_noise": False, "output_type": "latent"}
    found = run(pipe, edits[0], options, **force_mask(0.0))
    pipe.scheduler.set_timesteps(8)
    sigma = NoiseLevels(pipe.scheduler).levels[7][1]
    original = to_tensor([edits[0].picture()], 32, 32)
    noise = noises(noise_seeds(torch.Generator().manual_seed(SEED), 1), original)
    assert sigma > 0.01
    assert torch.allclose(found.images, original + sigma * noise, atol=1e-5)


def test_a_mask_of_ones_is_sdedit_of_that_seed(pipe, edits, settings):
    """Fails if anything but the blend touches the latents."""
    found = run(pipe, edits[0], settings, output_type="latent", **force_mask(1.0))
    original = to_tensor([edits[0].picture()], 32, 32)
    noise = noises(noise_seeds(torch.Generator().manual_seed(SEED), 1), original)
    embeddings = pipe._encode_prompts([edits[0].prompt], None, guided=True)
    with torch.no_grad():
        golden = sdedit(pipe.unet, pipe.scheduler, original, noise, embeddings, 8, start_index(8, 0.5))
    assert torch.allclose(found.images, golden, atol=1e-5)


def test_several_noises_share_one_mask_from_their_mean_attention(pipe, edits, settings):
    """Fails if each noise gets a mask of its own, or only the first counts."""
    seen = {}

    def keep(pipe, step, timestep, tensors):
        seen[step] = tensors

    options = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["attention", "latents", "mask"]}
    run(pipe, edits[0], settings, num_masks=3, **options)
    assert seen[0]["latents"].shape[0] == 3 and seen[0]["mask"].shape[0] == seen[0]["attention"].shape[0] == 1
    several = seen[0]["attention"]
    seeds = noise_seeds(torch.Generator().manual_seed(SEED), 3)
    alone = []
    for seed in seeds:
        original = to_tensor([edits[0].picture()], 32, 32)
        pipe.scheduler.set_timesteps(8)
        noised = NoiseLevels(pipe.scheduler).noised(original, noises([seed], original), 4)
        embeddings = pipe._encode_prompts([edits[0].prompt], None, guided=True)
        recorder = AttentionRecorder(pipe.unet, 2)
        recorder.expect(32, 32, rows=slice(1, None))
        with recorder, torch.no_grad():
            scaled = pipe.scheduler.scale_model_input(torch.cat([noised, noised]), pipe.scheduler.timesteps[4])
            pipe.unet(scaled, pipe.scheduler.timesteps[4], encoder_hidden_states=embeddings)
            recorder.finish_step()
        alone.append(recorder.mean())
    assert torch.allclose(several, torch.cat(alone).mean(0, keepdim=True), atol=1e-5)


def test_recording_leaves_no_trace(pipe, edits, settings, tmp_path):
    """Fails if a processor stays wrapped, also after an error, or if a weight, a key or a saved byte changes."""
    processors = {name: id(module) for name, module in pipe.unet.attn_processors.items()}
    pipe.unet.save_pretrained(tmp_path / "before")
    before, config = {key: value.clone() for key, value in pipe.unet.state_dict().items()}, dict(pipe.unet.config)
    run(pipe, edits[0], settings)

    def fail(*_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run(pipe, edits[0], settings, callback_on_step_end=fail)
    assert {name: id(module) for name, module in pipe.unet.attn_processors.items()} == processors
    after = pipe.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], value) for key, value in before.items())
    assert dict(pipe.unet.config) == config and not any(module._forward_hooks for module in pipe.unet.modules())
    pipe.unet.save_pretrained(tmp_path / "after")
    files = {path.name for path in (tmp_path / "before").iterdir()}
    assert files == {path.name for path in (tmp_path / "after").iterdir()} and len(files) == 2
    assert all((tmp_path / "before" / one).read_bytes() == (tmp_path / "after" / one).read_bytes() for one in files)


def test_recording_does_not_change_what_the_unet_says(pipe):
    hidden, context = (
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.zeros(2, 16, mini.WIDTH),
    )
    recorder = AttentionRecorder(pipe.unet, 2)
    recorder.expect(32, 32)
    with torch.no_grad():
        plain = pipe.unet(hidden, 10, encoder_hidden_states=context).sample
        with recorder:
            recorded = pipe.unet(hidden, 10, encoder_hidden_states=context).sample
    assert torch.equal(plain, recorded)


def test_the_authors_scheduler_takes_the_place_of_the_model_s(pipe):
    """On the model's own betas. Fails if the timestep spacing of another scheduler's config is carried over."""
    assert isinstance(pipe.scheduler, LMSDiscreteScheduler)
    pipe.scheduler.set_timesteps(50)
    assert pipe.scheduler.timesteps[25].item() == pytest.approx(489.306, abs=1e-3)
    assert NoiseLevels(pipe.scheduler).levels[25][1] == pytest.approx(1.5617, abs=1e-4)


def test_the_same_call_gives_the_same_bits_and_inputs_stay_as_they_are(pipe, edits, settings):
    picture = np.asarray(edits[0].picture()).copy()
    first = pipe(picture, edits[0].prompt, **settings, output_type="np")
    again = pipe(picture, edits[0].prompt, **settings, output_type="np")
    assert np.array_equal(first.images, again.images) and np.array_equal(picture, np.asarray(edits[0].picture()))
    other = pipe(picture, edits[0].prompt, **settings, output_type="np", generator=torch.Generator().manual_seed(1))
    assert not np.array_equal(first.images, other.images)


def test_outputs_come_in_every_type(pipe, edits, settings):
    picture = edits[0].picture()
    pil = pipe(picture, "a ring", **settings)
    assert isinstance(pil.images[0], Image.Image) and pil.masks[0].mode == "L" and pil.masks[0].size == (32, 32)
    arrays = pipe(picture, "a ring", **settings, output_type="np", return_step_masks=True)
    assert arrays.images.shape == (1, 32, 32, 3) and arrays.masks.dtype == bool
    assert arrays.step_masks.shape == (1, 4, 64, 64)
    tensors = pipe(picture, "a ring", **settings, output_type="pt", return_dict=False)
    assert tensors[0].shape == (1, 3, 32, 32) and tensors[1].dtype == torch.bool
    assert np.array_equal(np.asarray(pil.masks[0]) >= 128, arrays.masks[0])


def test_the_mask_alone_is_the_mask_of_the_edit(pipe, edits, settings):
    """Up to the blend's noise level, which is the authors' there. Fails if generate_mask takes another path."""
    options = {**settings, "matched_noise": True}
    del options["final"]
    mask = pipe.generate_mask(edits[0].picture(), edits[0].prompt, **options)[0]
    edited = run(pipe, edits[0], settings).masks[0]
    assert np.array_equal(np.asarray(mask), np.asarray(edited))


def test_pictures_that_are_not_square(pipe, edits, settings):
    """The authors' code stops with a shape error."""
    found = run(pipe, edits[0], settings, height=32, width=48, return_step_masks=True)
    assert found.images[0].size == (48, 32) and found.masks[0].size == (48, 32)
    assert found.step_masks.shape == (1, 4, 64, 96)


def test_without_guidance_the_unet_sees_one_row_per_noise(pipe, edits, settings, monkeypatch):
    rows = []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k))
    run(pipe, edits[0], settings, guidance_scale=1.0)
    run(pipe, edits[0], settings)
    assert rows == [1] * 4 + [2] * 4


def test_bfloat16_runs_and_decides_on_float32_maps(edits, settings):
    pipe = mini.build(0).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    options = {"callback_on_step_end_tensor_inputs": ["attention", "latents"]}
    run(pipe, edits[0], settings, callback_on_step_end=lambda p, s, t, tensors: seen.append(tensors) or {}, **options)
    assert seen[0]["attention"].dtype == torch.float32 and seen[0]["latents"].dtype == torch.bfloat16


def test_saved_and_loaded_it_edits_with_the_same_bits(pipe, edits, settings, tmp_path):
    """Fails if the stride of the maps, the vocabulary or a weight is not saved."""
    pipe.save_pretrained(tmp_path / "model")
    loaded = InstDiffEditPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    options = {**settings, "output_type": "latent"}
    assert torch.equal(run(loaded, edits[0], options).images, run(pipe, edits[0], options).images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "an empty prompt"),
        ({"prompt": "   "}, "an empty prompt"),
        ({"prompt": "a " * 15}, "a prompt of 15 tokens"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": 3}, "a prompt of type int"),
        ({"prompt": [3]}, "a prompt of type int"),
        ({"prompt": []}, "0 texts for 1 pictures: prompt"),
        ({"prompt": ["a ring", "a cross"]}, "2 texts for 1 pictures: prompt"),
        ({"negative_prompt": ["x", "y"]}, "2 texts for 1 pictures: negative_prompt"),
        ({"negative_prompt": "a " * 15}, "a negative_prompt of 15 tokens"),
        ({"negative_prompt": [3]}, "a negative_prompt of type int"),
        ({"strength": 0.0}, "strength 0.0 of 8 steps"),
        ({"strength": 1.5}, "strength 1.5 of 8 steps"),
        ({"strength": 0.1}, "strength 0.1 of 8 steps"),
        ({"num_masks": 0}, "num_masks 0"),
        ({"mask_threshold": 1.0}, "mask_threshold 1.0"),
        ({"final": "paint"}, "final 'paint'"),
        ({"roles": "last"}, "roles 'last'"),
        ({"output_type": "gif"}, "output_type 'gif'"),
        ({"final": "inpaint"}, "no inpainting model to finish with"),
        ({"image": []}, "no picture"),
        ({"image": "nowhere.png"}, "no such image: nowhere.png"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 pictures"),
        ({"generator": 3}, "something else than a generator"),
        ({"height": -32}, "size -32 x 32"),
        ({"image_latents": torch.zeros(1, 3, 16, 16)}, r"image_latents of shape \[1, 3, 16, 16\]"),
        ({"image_latents": torch.zeros(2, 3, 32, 32)}, r"image_latents of shape \[2, 3, 32, 32\]"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs 'noise'"),
    ],
    ids=lambda value: " ".join(value.split()) if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_used_is_refused_in_one_line(pipe, edits, settings, changes, message):
    """Fails if a check is left out, and if its message breaks the line."""
    arguments = {"image": edits[0].picture(), "prompt": edits[0].prompt, **settings, **changes}
    with pytest.raises(UserError, match=message) as refusal:
        pipe(**arguments)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_generator_on_another_device_is_refused(pipe, edits, settings):
    """Seeds are drawn on the CPU, so that they are the same everywhere. Fails if it is used all the same."""

    class Elsewhere(torch.Generator):
        device = torch.device("cuda")

    with pytest.raises(UserError, match="a generator on another device"):
        run(pipe, edits[0], settings, generator=Elsewhere())


def test_a_model_for_inpainting_is_refused_as_a_base_model(pipe):
    """Its UNet wants nine channels. Fails if that is found out by a convolution."""
    with torch.random.fork_rng(devices=[]):
        unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
    with pytest.raises(UserError, match="a UNet of 9 input channels"):
        InstDiffEditPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, unet, pipe.scheduler)


def test_a_size_that_the_autoencoder_cannot_halve_is_refused(pipe, edits, settings, monkeypatch):
    monkeypatch.setattr(pipe, "vae_scale_factor", 8)
    with pytest.raises(UserError, match="size 36 x 32"):
        run(pipe, edits[0], settings, height=36, width=32)


def test_a_model_without_cross_attention_is_refused(pipe):
    with pytest.raises(UserError, match="no cross-attention in down and up blocks: Identity"):
        AttentionRecorder(torch.nn.Identity())


def test_a_resolution_that_no_layer_has_is_named(pipe, edits, settings):
    recorder = AttentionRecorder(pipe.unet, 8)
    recorder.expect(32, 32)
    with recorder, torch.no_grad():
        pipe.unet(torch.zeros(1, 3, 32, 32), 1, encoder_hidden_states=torch.zeros(1, 16, mini.WIDTH))
        with pytest.raises(UserError, match="no cross-attention at 4 x 4"):
            recorder.finish_step()
