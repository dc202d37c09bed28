"""What a call says besides picture and numbers, by diffusers' names: embeddings, words, several edits, callbacks."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.callbacks import SDCFGCutoffCallback

from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import SEED, InstDiffEditPipeline
from inst_diff_edit.words import Words, split_words
from tenfold import InputError, UserError

ALL = InstDiffEditPipeline._callback_tensor_inputs


@pytest.fixture
def latent(settings):
    return {**settings, "output_type": "latent"}


@pytest.fixture
def rows(pipe, monkeypatch):
    """How many rows the UNet saw in every step."""
    seen, forward = [], pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *a, **k: seen.append(len(x)) or forward(x, *a, **k))
    return seen


def call(pipe, edit, settings, **changes):
    return pipe(edit.picture(), **{"prompt": edit.prompt, **settings, **changes})


def test_a_prompt_s_embeddings_edit_as_the_prompt_does(pipe, edits, latent):
    """With the prompt beside them, or its words. Fails if they are encoded anew, rounded otherwise, or not used."""
    plain = call(pipe, edits[0], latent, negative_prompt="a ring")
    embeds, negative = pipe.encode_prompt(edits[0].prompt, negative_prompt="a ring")
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    beside = call(pipe, edits[0], latent, **given)
    named = call(pipe, edits[0], latent, prompt=None, words=split_words(pipe.tokenizer, edits[0].prompt), **given)
    for found in (beside, named):
        assert torch.equal(found.images, plain.images) and torch.equal(found.masks, plain.masks)
        assert found.words == plain.words
    other, _ = pipe.encode_prompt(edits[1].prompt, negative_prompt="a ring")
    weighted = call(pipe, edits[0], latent, prompt_embeds=other, negative_prompt_embeds=negative)
    assert weighted.words == plain.words and not torch.allclose(weighted.images, plain.images, atol=1e-4)


def test_words_say_which_tokens_the_mask_is_made_of(pipe, edits, latent):
    """Fails if the tokenizer's words count all the same."""
    found = call(pipe, edits[0], latent, words=Words(("first two",), ((0,), (1, 2), (3,)), ()))
    assert found.words[0].text == ("first two",) and found.roles.tolist() == [[0, 1, 0]]
    assert not torch.equal(found.soft_masks, call(pipe, edits[0], latent).soft_masks)


def test_a_text_can_be_encoded_and_used_where_there_is_no_text_encoder(pipe, edits, latent):
    """As one does to save memory. Fails if a part that is None is asked for something."""
    reader = InstDiffEditPipeline(None, pipe.text_encoder, pipe.tokenizer, None, None)
    embeds, negative = reader.encode_prompt(edits[0].prompt)
    painter = InstDiffEditPipeline(pipe.vae, None, None, pipe.unet, pipe.scheduler, mini.STRIDE)
    painter.set_progress_bar_config(disable=True)
    words = split_words(pipe.tokenizer, edits[0].prompt)
    given = {"prompt": None, "prompt_embeds": embeds, "words": words}
    found = call(painter, edits[0], latent, negative_prompt_embeds=negative, **given)
    assert torch.equal(found.images, call(pipe, edits[0], latent).images)
    unguided = call(painter, edits[0], latent, guidance_scale=1.0, **given)
    assert torch.equal(unguided.images, call(pipe, edits[0], latent, guidance_scale=1.0).images)
    with pytest.raises(UserError, match="no text encoder: prompt"):
        call(painter, edits[0], latent)
    with pytest.raises(UserError, match="no text encoder: prompt"):
        call(painter, edits[0], latent, **given)


def test_several_edits_of_a_picture_have_noises_of_their_own(double, edits, settings):
    """The first is the edit of one alone, the next that of the next seed. Fails if edits or pictures are mixed up."""
    options = {**settings, "num_inference_steps": 4, "num_masks": 2, "output_type": "pt", "return_step_masks": True}
    pictures, prompts = [one.picture() for one in edits[:2]], [one.prompt for one in edits[:2]]
    found = double(pictures, prompts, num_images_per_prompt=2, negative_prompt=["", "a ring"], **options)
    assert found.images.shape == (4, 3, 32, 32) and len(found.words) == len(found.roles) == len(found.step_masks) == 4
    for row, (edit, negative) in enumerate(((edits[0], ""), (edits[1], "a ring"))):
        for more in (0, 1)[row:]:
            own = torch.Generator().manual_seed(SEED + more)
            alone = call(double, edit, options, generator=own, negative_prompt=negative)
            assert torch.allclose(found.images[2 * row + more], alone.images[0], atol=1e-4)
            assert torch.equal(found.masks[2 * row + more], alone.masks[0])
    assert not torch.allclose(found.images[0], found.images[1], atol=1e-3)


def test_generators_are_one_a_picture_or_one_an_edit(double, edits, latent):
    """Fails if a generator is copied for the next edit, or four of them are too many."""
    latent = {**latent, "num_inference_steps": 4}
    seeded = [torch.Generator().manual_seed(number) for number in range(3)]
    turns = call(double, edits[0], latent, num_images_per_prompt=2, generator=seeded[0]).images
    assert not torch.allclose(turns[0], turns[1], atol=1e-3)
    each = call(double, edits[0], latent, num_images_per_prompt=2, generator=seeded[1:]).images
    alone = call(double, edits[0], latent, generator=torch.Generator().manual_seed(2)).images
    assert torch.allclose(each[1], alone[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_the_pipeline_takes_its_own_output_back(pipe, edits, settings, kind):
    """Batches of floating-point numbers. Fails if they are refused, or read as another picture than PIL's."""
    settings = {**settings, "num_inference_steps": 4}
    first = call(pipe, edits[0], {**settings, "output_type": kind}).images
    pil = call(pipe, edits[0], settings).images
    options = {**settings, "output_type": "latent"}
    again, golden = (pipe(picture, edits[1].prompt, **options).images for picture in (first, pil))
    assert first.ndim == 4 and torch.equal(again, golden)


def test_layers_at_the_text_encoder_s_end_can_be_left_out(folders, monkeypatch):
    """Fails if another layer is taken, its norm is left out, or a call does not hand it on."""
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd")
    pipe.set_progress_bar_config(disable=True)
    ids = pipe.tokenizer(["a Husky"], padding="max_length", return_tensors="pt").input_ids
    layers = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    with torch.no_grad():
        for skipped in (0, 1, 2):
            found, negative = pipe.encode_prompt("a Husky", clip_skip=skipped)
            assert torch.allclose(found, norm(layers[-1 - skipped]), atol=1e-6)
        plain, same = pipe.encode_prompt("a Husky")
        assert torch.equal(negative, same) and torch.allclose(plain, pipe.encode_prompt("a Husky", clip_skip=0)[0])
    seen, encode = [], pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda *a, **k: seen.append(k["clip_skip"]) or encode(*a, **k))
    picture = np.zeros((64, 64, 3), np.uint8)
    options = {"num_inference_steps": 2, "num_masks": 1, "final": "mask", "height": 64, "width": 64}
    pipe(picture, "a Husky", clip_skip=1, **options)
    assert seen == [1] == [pipe.clip_skip]
    with pytest.raises(InputError, match=r"clip_skip 3: clip_skip \(expected 0 to 2"):
        pipe(picture, "a Husky", clip_skip=3, **options)


def test_a_unet_that_is_told_the_guidance_needs_no_second_half(pipe, edits, latent):
    """As latent consistency models are. Fails if the scale is not handed to it, or both halves are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
        unet = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 8})
    seen, forward = [], unet.forward
    unet.forward = lambda x, *a, **k: seen.append((len(x), k["timestep_cond"])) or forward(x, *a, **k)
    consistent = InstDiffEditPipeline.from_pipe(pipe, unet=unet)
    consistent.set_progress_bar_config(disable=True)
    call(consistent, edits[0], latent, num_masks=2)
    expected = pipe.get_guidance_scale_embedding(torch.full((2,), 6.5), 8)
    assert {count for count, _ in seen} == {2} and all(torch.equal(told, expected) for _, told in seen)
    assert not consistent.do_classifier_free_guidance


def test_a_callback_that_gives_back_what_it_got_changes_nothing(pipe, edits, latent):
    """By every name that it can ask for. Fails if one is missing, or blending twice differs from once."""
    seen = []

    def keep(pipe, step, timestep, tensors):
        seen.append(tensors.keys())
        return tensors

    watched = call(pipe, edits[0], latent, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=ALL)
    assert torch.equal(watched.images, call(pipe, edits[0], latent).images)
    assert seen == [dict.fromkeys(ALL).keys()] * 4
    assert {"latents", "prompt_embeds", "negative_prompt_embeds"} < set(ALL)


def test_latents_that_a_callback_gives_back_stand(pipe, edits, latent):
    """As in diffusers. Fails if they are blended with the original afterwards."""

    def clear(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == pipe.num_timesteps - 1 else {}

    assert not call(pipe, edits[0], latent, callback_on_step_end=clear).images.any()


def test_a_callback_s_embeddings_are_those_of_the_steps_to_come(pipe, edits, latent):
    """Fails if they come too early, or not at all."""
    other = pipe._encode_prompts([edits[1].prompt], None, guided=True)

    def change(at):
        return lambda pipe, step, timestep, tensors: {"prompt_embeds": other} if step == at else {}

    plain = call(pipe, edits[0], latent).images
    assert not torch.allclose(call(pipe, edits[0], latent, callback_on_step_end=change(1)).images, plain, atol=1e-5)
    assert torch.equal(call(pipe, edits[0], latent, callback_on_step_end=change(3)).images, plain)


def test_guidance_can_be_cut_off_by_diffusers_own_callback(pipe, edits, latent, rows):
    """For an edit of several noises. Fails if the conditional half is not the one that is kept and recorded."""
    cut = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    attention = []

    class Cut(SDCFGCutoffCallback):
        tensor_inputs = ("prompt_embeds", "attention")

        def callback_fn(self, pipe, step, timestep, tensors):
            attention.append(tensors.pop("attention"))
            return cut.callback_fn(pipe, step, timestep, tensors)

    found = call(pipe, edits[0], latent, num_masks=2, callback_on_step_end=Cut(None, 1))
    assert rows == [4, 4, 2, 2] and pipe.guidance_scale == 0.0 and found.images.isfinite().all()
    assert all(torch.allclose(one.sum(-1), torch.ones(1, 16, 16), atol=1e-4) for one in attention)
    with pytest.raises(InputError, match=r"prompt_embeds \[1, 16, 64\] of a callback: .* \[2 or 4, 16, 64\]"):
        pipe([edits[0].picture()] * 2, edits[0].prompt, callback_on_step_end=cut, **latent)


def test_an_interrupted_stage_ends_with_what_it_has(pipe, edits, latent, rows):
    """Fails if another step is run, or the next call is interrupted, too."""
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = step == 1
        return tensors

    found = call(pipe, edits[0], latent, callback_on_step_end=stop, return_step_masks=True)
    assert len(rows) == 2 and found.step_masks.shape[1] == 2 and pipe.interrupt and pipe.num_timesteps == 4
    assert torch.equal(found.images, seen[1])
    call(pipe, edits[0], latent)
    assert len(rows) == 2 + 4


def test_interrupting_the_mask_stage_leaves_inpainting_its_steps_and_it_can_be_interrupted_itself(folders):
    """Fails if a stage takes the other one's flag."""
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd", inpaint=folders / "inpainting")
    pipe.set_progress_bar_config(disable=True)
    steps, forward = [], pipe.inpaint.unet.forward
    pipe.inpaint.unet.forward = lambda *a, **k: steps.append(len(steps)) or forward(*a, **k)
    options = {"num_inference_steps": 4, "num_masks": 1, "height": 64, "width": 64}
    options["inpaint_options"] = {"num_inference_steps": 4}

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    picture = np.zeros((64, 64, 3), np.uint8)
    pipe(picture, "a Husky", callback_on_step_end=stop, **options)
    whole = len(steps)
    assert whole >= 4  # and one more with PNDM
    steps.clear()
    pipe.inpaint.unet.forward = lambda *a, **k: (
        steps.append(1) or setattr(pipe, "_interrupt", len(steps) == 2) or forward(*a, **k)
    )
    pipe(picture, "a Husky", **options)
    assert len(steps) == 2


def test_given_embeddings_are_told_to_the_inpainting_model(folders, monkeypatch):
    """In place of the texts, for every edit. Fails if it gets both, which it refuses, or the texts alone."""
    pipe = InstDiffEditPipeline.from_pretrained(folders / "sd", inpaint=folders / "inpainting")
    pipe.set_progress_bar_config(disable=True)
    seen, inpaint = [], type(pipe.inpaint).__call__
    monkeypatch.setattr(type(pipe.inpaint), "__call__", lambda *a, **k: seen.append(k) or inpaint(*a, **k))
    options = {"num_inference_steps": 2, "num_masks": 1, "height": 64, "width": 64, "prompt": "a Husky"}
    options |= {"inpaint_options": {"num_inference_steps": 1}, "num_images_per_prompt": 2}
    embeds, _ = pipe.encode_prompt("a Husky")
    picture = np.zeros((64, 64, 3), np.uint8)
    assert len(pipe(picture, prompt_embeds=embeds, **options).images) == 2
    assert torch.equal(seen[0]["prompt_embeds"], embeds.expand(2, -1, -1)) and "prompt" not in seen[0]
    pipe(picture, **options)
    assert seen[1]["prompt"] == ["a Husky"] * 2 and seen[1]["negative_prompt"] == ["", ""]
    pipe.inpaint.unet.register_to_config(cross_attention_dim=16)
    with pytest.raises(InputError, match=r"embeddings of width 12: prompt_embeds \(expected 16 for the inpainting"):
        pipe(picture, prompt_embeds=embeds, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "no prompt: prompt"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 16, 64)}, "embeddings do not say where their words are"),
        (
            {"prompt_embeds": torch.zeros(1, 16, 63)},
            r"prompt_embeds of shape \[1, 16, 63\]: .*\[1 or 1, positions, 64\]",
        ),
        ({"prompt_embeds": torch.zeros(3, 16, 64)}, r"prompt_embeds of shape \[3, 16, 64\]"),
        ({"prompt_embeds": torch.zeros(1, 2, 64)}, r"places of 5 words: words .* below 2\)"),
        ({"prompt_embeds": "a ring"}, "prompt_embeds of type str"),
        ({"prompt_embeds": torch.full((1, 16, 64), torch.nan)}, "prompt_embeds that are not finite"),
        (
            {"negative_prompt_embeds": torch.zeros(1, 9, 32), "prompt_embeds": torch.zeros(1, 16, 64)},
            r"of shape \[1, 9",
        ),
        ({"negative_prompt_embeds": torch.zeros(1, 16, 64), "negative_prompt": "a"}, "a negative prompt twice"),
        ({"words": "a ring"}, "no words of every picture"),
        ({"words": Words(("a",), ((0,), (99,), (2,)), ())}, "places of 1 words: words"),
        ({"words": Words(("a",), ((0,), (1,)), ())}, "places of 1 words: words"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0: .*at least 1"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt 1.5"),
        ({"cross_attention_kwargs": 0.5}, "a float: cross_attention_kwargs"),
        ({"clip_skip": 2}, r"clip_skip 2: clip_skip \(expected 0 to 1"),
        ({"clip_skip": "1"}, "clip_skip '1'"),
        ({"mask_threshold": 1.0}, r"mask_threshold 1.0: mask_threshold \(expected at least 0, below 1\)"),
        ({"strength": 1.5}, r"strength 1.5 of 8 steps: strength \(expected 0.125 to 1\)"),
        ({"strength": 0.5, "num_inference_steps": 1}, r"strength 0.5 of 1 steps: strength \(expected 1\)"),
        ({"strength": "0.5"}, "strength '0.5' of 8 steps"),
        ({"strength": True}, "strength True of 8 steps"),
        ({"num_inference_steps": "8"}, "num_inference_steps '8': .*a whole number"),
        ({"num_inference_steps": 8.0}, "num_inference_steps 8.0"),
        ({"guidance_scale": "7.5"}, "guidance_scale '7.5'"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"num_masks": "3"}, "num_masks '3'"),
        ({"mask_threshold": "0.2"}, "mask_threshold '0.2'"),
        ({"object_threshold": None}, "object_threshold None"),
        ({"background_threshold": float("inf")}, "background_threshold inf"),
        ({"height": "32"}, "height '32': height"),
        ({"width": 32.0}, "width 32.0"),
        ({"image_latents": [1]}, "image_latents of type list"),
    ],
    ids=lambda value: " ".join(f"{name}" for name in value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_used_is_refused_before_anything_is_done(pipe, edits, settings, rows, changes, message):
    """In one line, as a ValueError, which diffusers raises there. Fails if a check is left out."""
    with pytest.raises(ValueError, match=message) as refusal:
        call(pipe, edits[0], settings, **changes)
    assert len(str(refusal.value).splitlines()) == 1 and isinstance(refusal.value, UserError) and not rows


def test_a_tokenizer_that_does_not_say_its_length_is_one_line(pipe, edits, settings, rows, monkeypatch):
    """A tokenizer_config.json without model_max_length. Fails if the library's own overflow comes through."""
    monkeypatch.setattr(pipe.tokenizer, "model_max_length", 10**30)
    with pytest.raises(InputError, match=r"a tokenizer without model_max_length: tokenizer_config\.json"):
        call(pipe, edits[0], settings)
    assert not rows
