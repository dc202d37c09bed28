"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity ones compare with golden data of the authors' code, which lies in the source tree (or under `$TENFOLD_GOLDENS`)
and does not travel in a wheel. Costs are counted on full-size models without weights. The mini ones run the model that
ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.ledger.goldens import parity as compare_golden
from tenfold.ledger.text import small
from tenfold.runs import read_json

if TYPE_CHECKING:
    from inst_diff_edit.costs import Cost

Check = Callable[[], Outcome]

PARITY = (
    "attention_capture",
    "aggregate_attention",
    "aggregate_attention_b1",
    "instant_mask",
    "mask_sequence",
    "blend_loop",
    "tiny_pipeline",
    "diffedit_mask",
    "list_formats",
)
# Of the live check: a world of its own, scenes that choose thresholds, and scenes that are tested.
LIVE_WORLD, CHOOSING, TESTING = 2025, 8, 12


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {name: partial(parity, name) for name in PARITY}
    for name in ("official", "one_noise", "direct", "repository", "diffusers"):
        found[f"tflops_{name}"] = partial(tflops, name)
    for name in ("official", "direct", "repository", "diffusers"):
        found[f"calls_{name}"] = partial(calls, name)
    return found | {
        "official_keys": official_keys,
        "samples_official": samples_official,
        "parameters": parameters,
        "ratio_repository": ratio_repository,
        "ratio_diffusers": ratio_diffusers,
        "ratio_direct": ratio_direct,
        "exactness": exactness,
        "shipped_model": shipped_model,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from inst_diff_edit.evidence.parity import COMPUTATIONS

    return compare_golden("inst_diff_edit", case, COMPUTATIONS)


def official_keys() -> Outcome:
    """Names, shapes and numbers of Stable Diffusion's parameters, and the layers that are hooked, at full size."""
    from inst_diff_edit import costs
    from inst_diff_edit.attention import AttentionRecorder

    folder = goldens("inst_diff_edit")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    unet, inpainting, vae = costs.unet(), costs.unet(inpainting=True), costs.vae()
    shapes = {f"unet.{name}": list(value.shape) for name, value in unet.state_dict().items()}
    wrong = sorted(name for name, shape in golden["keys"].items() if shapes.get(name) != shape)
    # At 512 pixels the layers at 16 x 16 are those of the third resolution, down and up.
    hooked = {name.removesuffix(".transformer_blocks.0.attn2") for name in AttentionRecorder(unet).layers}
    wrong += sorted(set(golden["used_layers"]) - hooked)
    counts = {
        "unet_sd_v1_4": costs.parameters(unet),
        "unet_sd_inpainting_9_channels": costs.parameters(inpainting),
        "vae": costs.parameters(vae),
        "vae_encoder_and_quant_conv": costs.parameters(vae.encoder) + costs.parameters(vae.quant_conv),
        "vae_decoder_and_post_quant_conv": costs.parameters(vae.decoder) + costs.parameters(vae.post_quant_conv),
        "text_encoder": costs.parameters(costs.text_encoder()),
    }
    wrong += [f"{name}: {count:,}" for name, count in counts.items() if golden["parameters"][name] != count]
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(f"{len(golden['keys'])} names agree", True, f"and {len(counts)} numbers of parameters")


def cost(name: str) -> Cost:
    """The cost of a method by its short name."""
    from inst_diff_edit import costs

    return {
        "official": costs.inst_diff_edit_cost,
        "one_noise": partial(costs.inst_diff_edit_cost, 1),
        "direct": partial(costs.inst_diff_edit_cost, 1, final="latents"),
        "repository": costs.repository_diffedit_cost,
        "diffusers": costs.diffusers_diffedit_cost,
    }[name]()


def tflops(name: str) -> Outcome:
    """TFLOPs of an edit."""
    taken = cost(name)
    return Outcome(taken.tflops(), True, f"{taken.samples} UNet sample-forwards, {taken.decodes} decodings")


def calls(name: str) -> Outcome:
    """Sequential UNet calls of an edit."""
    return Outcome(cost(name).calls, True)


def samples_official() -> Outcome:
    """UNet sample-forwards of the paper's setting."""
    return Outcome(cost("official").samples, True)


def parameters() -> Outcome:
    """Of UNet, autoencoder and text tower."""
    from inst_diff_edit import costs

    total = sum(costs.parameters(model) for model in (costs.unet(), costs.vae(), costs.text_encoder()))
    return Outcome(total, True, "the method adds none")


def ratio_repository() -> Outcome:
    """The paper's comparison, by FLOPs and by calls."""
    ours, theirs = cost("official"), cost("repository")
    ratio = theirs.tflops() / ours.tflops()
    return Outcome(ratio, None, f"{theirs.calls / ours.calls:.1f} times fewer sequential calls")


def ratio_diffusers() -> Outcome:
    """The same against diffusers' own DiffEdit: there is no such advantage."""
    ours, theirs = cost("official"), cost("diffusers")
    ratio = theirs.tflops() / ours.tflops()
    return Outcome(ratio, ratio >= 5, f"{theirs.calls / ours.calls:.2f} times fewer sequential calls")


def ratio_direct() -> Outcome:
    """One noise, latents decoded directly, against diffusers' DiffEdit."""
    ours, theirs = cost("direct"), cost("diffusers")
    return Outcome(
        theirs.tflops() / ours.tflops(), True, f"{theirs.calls / ours.calls:.1f} times fewer sequential calls"
    )


def exactness() -> Outcome:
    """Masks of zeros and of ones on the mini model."""
    import torch

    from inst_diff_edit.data import scenes
    from inst_diff_edit.evaluation.baselines import sdedit
    from inst_diff_edit.inputs import to_tensor
    from inst_diff_edit.miniature import model as mini
    from inst_diff_edit.pipeline import SEED
    from inst_diff_edit.sampling import noise_seeds, noises, start_index

    pipe, edit = mini.load(), scenes.edit(0, 0)

    def edited(value: float) -> torch.Tensor:
        return pipe(
            edit.picture(), edit.prompt, 0.5, 8, num_masks=1, matched_noise=True, output_type="latent",
            callback_on_step_end=lambda p, s, t, tensors: {"mask": torch.full_like(tensors["mask"], value)},
            callback_on_step_end_tensor_inputs=("mask",),
        ).images  # fmt: skip

    original = to_tensor([edit.picture()], scenes.EDGE, scenes.EDGE) * pipe.vae.config.scaling_factor
    kept = (edited(0.0) - original).abs().max().item()
    noise = noises(noise_seeds(torch.Generator().manual_seed(SEED), 1), original)
    embeddings = pipe._encode_prompts([edit.prompt], None, guided=True)
    with torch.no_grad():
        free = sdedit(pipe.unet, pipe.scheduler, original, noise, embeddings, 8, start_index(8, 0.5))
    changed = (edited(1.0) - free).abs().max().item()
    return Outcome(small(max(kept, changed)), max(kept, changed) < 1e-5, "largest difference of a latent")


def shipped_model() -> Outcome:
    """Masks of the model that ships on held-out scenes, with one noise and a threshold chosen on others."""
    import numpy as np

    from inst_diff_edit.data import scenes
    from inst_diff_edit.evidence import arms, experiments, rules
    from inst_diff_edit.miniature import model as mini

    edits = [scenes.edit(LIVE_WORLD, index) for index in range(CHOOSING + TESTING)]
    truth = np.stack([edit.mask() for edit in edits])
    soft = experiments.collect(mini.load(), edits, num_masks=1)["soft"]
    cuts = {arms.METHOD: rules.cut_of(soft)} | rules.controls(edits)
    found = {
        name: experiments.score(cuts[name], truth, CHOOSING, None)
        for name in (arms.METHOD, arms.BOX, arms.FULL, arms.BOTH)
    }
    ours, *blind, both = (scores.iou.mean() for scores in found.values())
    detail = (
        f"{arms.BOX} {blind[0]:.3f}, {arms.FULL} {blind[1]:.3f}, {arms.BOTH} {both:.3f}; {TESTING} scenes, "
        f"threshold {found[arms.METHOD].threshold} chosen on {CHOOSING} others"
    )
    return Outcome(float(ours), bool(ours > max(blind)), detail)


def figures(folder: Path) -> list[Figure]:
    """Pictures for the report."""
    from inst_diff_edit.evidence.figures import draw

    return draw(folder)
