"""Every argument of a call does what it says, and nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image

from inst_diff_edit import stage
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import SEED


def call(pipe, edit, settings, **changes):
    return pipe(edit.picture(), edit.prompt, **{**settings, **changes})


@pytest.fixture
def asked(monkeypatch):
    """What `instant_mask` was asked in every step."""
    seen = []
    form = stage.instant_mask

    def spy(*given, **options):
        seen.append(options)
        return form(*given, **options)

    monkeypatch.setattr(stage, "instant_mask", spy)
    return seen


def test_roles_of_the_first_step_are_kept_unless_every_step_shall_decide(pipe, edits, settings, asked):
    """Fails if roles are decided anew, or "every" does nothing."""
    found = call(pipe, edits[0], settings)
    first, *later = (options["roles"] for options in asked)
    assert first is None and len(later) == 3 and all(torch.equal(roles, found.roles) for roles in later)
    asked.clear()
    call(pipe, edits[0], settings, roles="every")
    assert [options["roles"] for options in asked] == [None] * 4


def test_thresholds_reach_the_mask(pipe, edits, settings, asked):
    """Fails if one is exchanged with another or left at its default."""
    given = {"mask_threshold": 0.4, "object_threshold": 0.8, "background_threshold": 0.3}
    call(pipe, edits[0], settings, **given)
    assert all(
        (options["threshold"], options["object_threshold"], options["background_threshold"]) == (0.4, 0.8, 0.3)
        for options in asked
    )
    asked.clear()
    call(pipe, edits[0], settings)
    assert asked[0]["threshold"] == 0.2
    assert (asked[0]["object_threshold"], asked[0]["background_threshold"]) == (0.9, 0.6)


def test_the_mask_of_every_step_is_returned_on_request(pipe, edits, settings):
    """Fails if another step's, a soft mask or another size comes out."""
    found = call(pipe, edits[0], settings, return_step_masks=True, height=32, width=48)
    assert found.step_masks.shape == (1, 4, 64, 96) and set(found.step_masks.unique().tolist()) <= {0, 255}
    last = Image.fromarray(found.step_masks[0, -1].numpy()).resize((48, 32))
    assert np.array_equal(np.asarray(found.masks[0]), np.asarray(last))
    assert found.soft_masks.dtype == torch.uint8
    near = (found.soft_masks[0].float() / 255 - 0.2).abs() < 1 / 255
    assert torch.equal((found.soft_masks[0] > 51)[~near], (found.step_masks[0, -1] > 0)[~near])
    assert call(pipe, edits[0], settings).step_masks is None


def test_a_callback_can_change_guidance(pipe, edits, settings):
    """By diffusers' names. Fails if later steps keep the call's scale, or the number of steps is the schedule's."""

    def raise_scale(pipe, step, timestep, tensors):
        pipe._guidance_scale += 1.0
        return {}

    settings = {**settings, "final": "latents", "output_type": "pt", "guidance_scale": 2.0}
    plain = call(pipe, edits[0], settings).images
    raised = call(pipe, edits[0], settings, callback_on_step_end=raise_scale).images
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps == 6.0
    assert not torch.equal(plain, raised)
    assert torch.equal(call(pipe, edits[0], settings).images, plain)


def test_a_list_of_batches_is_a_batch(pipe, edits, settings):
    """Fails if a list's tensors ``[1, 3, height, width]``, as diffusers' pipelines take them, are no pictures."""
    picture = (torch.from_numpy(np.array(edits[0].picture())).permute(2, 0, 1).float() / 255)[None]
    settings = {**settings, "final": "mask", "output_type": "pt"}
    masks = pipe([picture, picture], edits[0].prompt, **settings).masks
    assert torch.equal(masks, pipe(torch.cat([picture, picture]), edits[0].prompt, **settings).masks)


def test_the_callback_sees_every_step_and_can_replace_latents_and_mask(pipe, edits, settings):
    """Fails if steps are counted over the whole schedule, or what is given back is dropped."""
    seen = []

    def replace(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), tensors["mask"].shape))
        return {"latents": torch.full_like(tensors["latents"], 0.25), "mask": torch.ones_like(tensors["mask"])}

    options = {"callback_on_step_end": replace, "callback_on_step_end_tensor_inputs": ["latents", "mask"]}
    found = call(pipe, edits[0], settings, output_type="latent", **options)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] and {shape for _, _, shape in seen} == {(1, 32, 32)}
    assert [time for _, time, _ in seen] == pipe.scheduler.timesteps[4:].tolist()
    assert torch.equal(found.images, torch.full((1, 3, 32, 32), 0.25))


def test_a_batch_with_several_noises_is_its_pictures_one_by_one(double, edits, settings):
    """Each picture's first noise is decoded. Fails if rows of pictures and noises are mixed up."""
    options = {**settings, "num_masks": 2, "output_type": "pt"}
    several = edits[:3]
    together = double([one.picture() for one in several], [one.prompt for one in several], **options)
    assert together.images.shape == (3, 3, 32, 32)
    for row, one in enumerate(several):
        alone = call(double, one, options)
        assert torch.allclose(together.images[row], alone.images[0], atol=1e-4)
        assert torch.equal(together.masks[row], alone.masks[0])


def test_one_prompt_serves_all_pictures(pipe, edits, settings):
    """Fails if it is taken for the first picture only."""
    pictures = [one.picture() for one in edits[:2]]
    one = pipe(pictures, "a ring", **settings, output_type="pt")
    both = pipe(pictures, ["a ring", "a ring"], **settings, output_type="pt")
    assert torch.equal(one.images, both.images) and len(one.words) == 2


def test_a_negative_prompt_takes_the_place_of_the_empty_one(pipe, edits, settings):
    """Fails if it is ignored, or if guidance of 1 or less still reads it."""
    options = {**settings, "output_type": "latent"}
    plain, empty = call(pipe, edits[0], options).images, call(pipe, edits[0], options, negative_prompt="").images
    negative = call(pipe, edits[0], options, negative_prompt="a red ring").images
    assert torch.equal(plain, empty) and not torch.allclose(plain, negative, atol=1e-4)
    options["guidance_scale"] = 1.0
    unguided = call(pipe, edits[0], options).images
    assert torch.equal(unguided, call(pipe, edits[0], options, negative_prompt="a red ring").images)


def test_noise_levels_match_by_default_only_where_latents_are_decoded(pipe, edits, settings, monkeypatch):
    """Fails if the default or the choice is ignored."""
    seen = []
    denoise = pipe._denoise

    def spy(stage, *rest):
        seen.append(stage.options.matched_noise)
        return denoise(stage, *rest)

    monkeypatch.setattr(pipe, "_denoise", spy)
    call(pipe, edits[0], settings)
    call(pipe, edits[0], settings, final="mask")
    call(pipe, edits[0], settings, matched_noise=False)
    call(pipe, edits[0], settings, final="mask", matched_noise=True)
    assert seen == [True, False, False, True]


def test_the_text_is_rounded_to_half_precision_as_the_authors_do(pipe):
    """Fails if the text tower's float32 is handed on."""
    embeddings = pipe._encode_prompts(["a red ring"], None, guided=True)
    assert embeddings.dtype == torch.float32 and torch.equal(embeddings, embeddings.half().float())


def test_the_authors_seed_is_used_anew_for_every_picture(double, edits, settings):
    """Fails if the second picture's noise is drawn behind the first one's, or the seed is another."""
    options = {**settings, "output_type": "latent"}
    default = double([edits[0].picture()] * 2, edits[0].prompt, **options).images
    assert torch.allclose(default[0], default[1], atol=1e-4)
    named = call(double, edits[0], options, generator=torch.Generator().manual_seed(SEED)).images
    assert torch.equal(call(double, edits[0], options).images, named)


def test_a_single_generator_serves_all_pictures_in_turn(pipe, edits, settings):
    """Fails if it is copied: all pictures would have the same noise."""
    options = {**settings, "output_type": "latent", "generator": torch.Generator().manual_seed(5)}
    both = pipe([edits[0].picture()] * 2, edits[0].prompt, **options).images
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_a_mask_alone_and_a_tuple(pipe, edits, settings):
    """Fails if the mask stage of `generate_mask` is another, or pictures are made for nothing."""
    options = {name: value for name, value in settings.items() if name != "final"}
    edited, masks = call(pipe, edits[0], settings, return_dict=False)
    decoded = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda *given: decoded.append(given) or decode(*given)
    try:
        alone = pipe.generate_mask(edits[0].picture(), edits[0].prompt, matched_noise=True, **options)
    finally:
        del pipe.vae.decode
    assert not decoded and np.array_equal(np.asarray(alone[0]), np.asarray(masks[0])) and len(edited) == 1
    found = call(pipe, edits[0], settings, final="mask")
    assert found.images is None and found.masks[0].mode == "L"


def test_nothing_is_kept_for_gradients(pipe, edits, settings):
    """Fails if a call records for autograd: memory of every step."""
    assert any(weight.requires_grad for weight in pipe.unet.parameters())
    found = call(pipe, edits[0], settings, output_type="latent", num_inference_steps=2)
    assert not found.images.requires_grad


def test_models_go_home_after_a_call(pipe, edits, settings, monkeypatch):
    """As `enable_model_cpu_offload` wants it. Fails if the hooks' end is forgotten."""
    freed = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    call(pipe, edits[0], settings)
    assert freed == [True]


def test_a_model_of_another_shape_is_edited_at_its_own_size(pipe, edits, settings):
    """Fails if both edges come from the first."""
    pipe.unet.register_to_config(sample_size=(32, 48))
    try:
        assert call(pipe, edits[0], settings).images[0].size == (48, 32)
    finally:
        pipe.unet.register_to_config(sample_size=32)


def test_the_whole_schedule_can_be_run(pipe, edits, settings):
    """Strength 1. Fails if it is refused or a step is lost."""
    found = call(pipe, edits[0], settings, strength=1.0, return_step_masks=True)
    assert found.step_masks.shape[1] == 8


def test_given_latents_take_the_place_of_the_picture_s(pipe, edits, settings):
    """Fails if they are ignored."""
    options = {**settings, "output_type": "latent"}
    other = to_tensor([edits[1].picture()], 32, 32)
    ours = call(pipe, edits[0], options, image_latents=other).images
    assert torch.equal(ours, pipe(edits[1].picture(), edits[0].prompt, **options).images)


@pytest.mark.parametrize("prompt", ["a  zebra", "a\nzebra", "a zebra 🦝", "\u72d0\u72f8", "zebra."])
def test_prompts_that_stop_or_mislead_the_authors_code_give_a_mask(pipe, edits, settings, prompt):
    """Double spaces, line breaks, emoji, other alphabets, with words of several pieces.

    Fails if words are lost: every inner token must count in one word's map.
    """
    found = pipe(edits[0].picture(), prompt, **settings)
    words = found.words[0]
    assert len(words.text) == len(prompt.split()) and found.roles.shape == (1, len(words.text) + 2)
    assert sum(map(len, words.groups)) == len(words.ids)


def test_the_model_s_state_stays_as_it_was(pipe, edits, settings):
    """Fails if a call leaves the model in another mode or changes its config."""
    config, mode = dict(pipe.config), pipe.unet.training
    call(pipe, edits[0], settings)
    assert dict(pipe.config) == config and pipe.unet.training == mode and config["attention_stride"] == mini.STRIDE
