"""Half precision beside float32, and what crosses between host and device while denoising."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.conditioning import Conditioning
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.sampling import NoiseLevels, start_index
from inst_diff_edit.stage import MaskOptions, MaskStage
from inst_diff_edit.words import split_words
from tenfold import UserError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(pipe, edits, settings, dtype):
    """From the same noise, with maps in float32. Fails if noise is drawn in the model's dtype, or maps are formed in
    it."""
    half = mini.build(0).to(dtype)
    half.set_progress_bar_config(disable=True)
    seen = {}

    def keep(pipe, step, timestep, tensors):
        seen.setdefault(pipe.unet.dtype, []).append(tensors)

    options = {
        **settings,
        "output_type": "latent",
        "return_step_masks": True,
        "callback_on_step_end": keep,
        "callback_on_step_end_tensor_inputs": ["attention", "latents"],
    }
    ours, golden = (one(edits[0].picture(), edits[0].prompt, **options) for one in (half, pipe))
    for low, full in zip(seen[dtype], seen[torch.float32], strict=True):
        assert low["attention"].dtype == torch.float32 and low["latents"].dtype == dtype
        assert (low["attention"] - full["attention"]).abs().mean() < 1e-3
    assert (ours.step_masks == golden.step_masks).float().mean() > 0.95
    difference = (ours.images.float() - golden.images).norm() / golden.images.norm()
    assert difference < 0.05


@pytest.mark.parametrize("final", ["latents", "mask"])
def test_half_precision_that_overflows_is_one_line(edits, settings, final):
    """An infinity in the UNet, as float16 has it where float32 has 7e4. Fails if it gives a black picture with an empty
    mask."""
    half = mini.build(0).to(torch.float16)
    half.set_progress_bar_config(disable=True)
    half.unet.conv_out.weight.data.mul_(torch.inf)
    with pytest.raises(UserError, match=r"not finite.*float16 .*float32, or bfloat16"):
        half(edits[0].picture(), edits[0].prompt, **{**settings, "final": final})


def test_a_decoder_that_overflows_is_one_line(edits, settings, monkeypatch):
    """The latents are numbers, the picture is none. Fails if it becomes black."""
    half = mini.build(0).to(torch.float16)
    half.set_progress_bar_config(disable=True)
    monkeypatch.setattr(half, "_decode", lambda latents: torch.full_like(latents, torch.nan))
    with pytest.raises(UserError, match="decoded pictures"):
        half(edits[0].picture(), edits[0].prompt, **settings)


class Crossings(TorchFunctionMode):
    """Counts what makes the host wait for the device: values that are read, and tensors that change sides."""

    READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__array__")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if name in self.READS and first is not None and first.device.type == "meta":
            self.found.append(name)
        moved = isinstance(result, torch.Tensor) and first is not None and result.device != first.device
        made = name in ("tensor", "as_tensor", "scalar_tensor") and result.device.type == "meta"
        if (moved and name in ("to", "cuda", "type_as", "copy_")) or made:
            self.found.append(name)
        return result


@pytest.mark.parametrize("roles_anew", [False, True])
def test_no_step_waits_for_the_device(edits, roles_anew):
    """Here a device that cannot answer at all ("meta"): reading a value from it is an error. Timesteps, resizing's
    coefficients and the blur's weights are there before the second step.

    Fails if one of them, or a mask, a role or a similarity, is moved in every step.
    """
    pipe = mini.build(0)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to("meta")
    words = [split_words(pipe.tokenizer, edits[0].prompt)]
    latents, embeddings = torch.zeros(2, 3, 32, 32, device="meta"), torch.zeros(2, 16, mini.WIDTH, device="meta")
    steps = []

    def count(*_):
        steps.append(len(crossings.found))

    start, options = start_index(8, 0.5), MaskOptions(roles_anew=roles_anew, matched_noise=True, keep_masks=True)
    pipe.scheduler.set_timesteps(8)
    with Crossings() as crossings, torch.no_grad():
        told = Conditioning(embeddings, edits=1, noises=2)
        watch = pipe._watch(count, ("latents",), start, told)
        stage = MaskStage(latents, latents, words, 16, NoiseLevels(pipe.scheduler), options, watch)
        pipe._guidance_scale, pipe._interrupt = 7.5, False
        with AttentionRecorder(pipe.unet, mini.STRIDE) as recorder:
            pipe._denoise(stage, recorder, start, told, {})
        with pytest.raises((NotImplementedError, RuntimeError)):
            stage.found.mask.any().item()  # such a device indeed
    assert stage.found.mask.device.type == "meta" and len(steps) == 4
    assert steps[-1] == steps[0], crossings.found[steps[0] :]
