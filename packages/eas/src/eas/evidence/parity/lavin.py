"""Golden cases: a tiny LaVIN in training and in its three ways of generating, texts, and the shipped predictions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eas.checkpoints import lavin_keys
from eas.data.lavin import Problem, official_answer, prompt_of, read_predictions, target_of, tokenize
from eas.evidence.parity.model import PREFIX
from eas.folding import affine
from eas.lavin import Lavin, LavinConfig, Prefixes, answer_loss
from eas.lavin_decoding import MERGED, UNMERGED, Generated, Prompt, _Run, folding, generate
from eas.training.plan import StagePlan
from eas.training.settings import StageSettings
from tenfold.data.formats.scienceqa import ScienceQASample
from tenfold.ledger.goldens import Comparison
from tenfold.metrics.scienceqa import ScienceQAAnswer, scienceqa_scores


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Lavin:
    """The golden model: adapters and PIAs of all layers, all weights by name."""
    weights = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    made = LavinConfig(
        width=config["dim"],
        layers=config["n_layers"],
        heads=config["n_heads"],
        ffn=len(weights["layers.0.feed_forward.w1.weight"]),
        vocabulary=config["vocab"],
        norm_eps=config["norm_eps"],
        skip=tuple(config["skip"]),
        adapter_rank=config["adapter_dim"],
        pia_rank=len(weights["layers.0.replaced_adapter.conv_A.weight"]),
        tower_rank=config["adapter_dim"],
        groups=config.get("groups", 2),
        scale=config["scale"],
        temperature=config["t"],
        dropout=0.0,
        hidden_proj=config["hidden_proj"],
        features=config["n_feats"],
        vision_width=config["vis_width"],
        vision_layers=config["vis_layers"],
        vision_heads=config["vis_heads"],
        size=config["vis_res"],
        patch=config["vis_patch"],
    )
    model = Lavin(made, both=True)
    ours = lavin_keys.from_official_tensors(weights)
    ours.pop(f"{lavin_keys.VISUAL}proj", None)
    model.load_state_dict(ours, strict=True)
    return model.eval()


def lavin_model(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Training with gradients and a step of AdamW; generation un-merged in a batch and alone, folded in both orders."""
    _train(case["config"], build(case["config"], tensors), tensors, compare)
    _generate(case["config"], build(case["config"], tensors), tensors, compare)


def _train(config: Mapping[str, Any], model: Lavin, tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    model.requires_grad_(False)
    parameters = {lavin_keys.to_official(name): value for name, value in model.trained()}
    for value in parameters.values():
        value.requires_grad_(True)
    prefixes = Prefixes(tensors["in/prefix_img"], tensors["in/prefix_nonimg"])
    given = (tensors["in/examples"], tensors["in/images"], tensors["in/indicators"], prefixes, tensors["in/labels"])
    compare.close("picture's vectors", model.see(tensors["in/images"]), tensors["out/train/image_embeds"], "model")
    with torch.enable_grad():
        sequence, labels = model.insert(*given)
        compare.close("sequence", sequence, tensors["out/train/layer_in_0"], "model")
        compare.equal("labels", labels, tensors["out/train/labels_after_insert"])

        def watch(number: int, tokens: Tensor) -> None:
            compare.close(f"block {number}", tokens, tensors[f"out/train/layer_out_{number}"], "model")

        logits = model.output(model.run(sequence, model.train_step(sequence), watch))
        loss = answer_loss(logits, labels)
        loss.backward()
    compare.close("logits", logits, tensors["out/train/logits"], "model")
    compare.close("loss", loss, tensors["out/train/loss"], "model")
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    compare.close("gradient norm", norm, tensors["out/train/grad_norm_adapters"], "model")
    for key in (one for one in tensors if one.startswith("out/train/grad/")):
        name = key.removeprefix("out/train/grad/")
        golden = tensors[key]
        found = gradients.get(name)
        compare.close(key, torch.zeros_like(golden) if found is None else found.view_as(golden), golden, "model")
    groups = [
        {
            "params": [value],
            "weight_decay": config["wd"] if len(lavin_keys.official_shape(name, value.shape)) > 1 else 0.0,
        }
        for name, value in parameters.items()
        if value.grad is not None
    ]
    torch.optim.AdamW(groups, lr=config["lr"], betas=(0.9, 0.95)).step()
    for key in (one for one in tensors if one.startswith("out/train/after_step/")):
        golden = tensors[key]
        compare.close(key, parameters[key.removeprefix("out/train/after_step/")].view_as(golden), golden, "model")


def _generate(config: Mapping[str, Any], model: Lavin, tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    begin = torch.tensor([1])
    image, none = tensors["in/prefix_img"], tensors["in/prefix_nonimg"]
    front = torch.cat((begin, image))
    gap = torch.zeros(config["n_feats"], dtype=torch.long)
    prompts = [
        Prompt(torch.cat((front, gap, tensors["in/gen/prompt0"])), len(front)),
        Prompt(torch.cat((begin, none, tensors["in/gen/prompt1"]))),
    ]
    images, new = tensors["in/gen/images"], config["gen_len"]
    batch = generate(model, prompts, images, new, semantics=UNMERGED)
    _same("gen_batch2", batch, tensors, compare)
    one = (model, prompts[:1], images[:1], new)
    _same("gen_b1_unmerged", generate(*one, semantics=UNMERGED), tensors, compare)
    _same("gen_b1_merged_official", generate(*one, semantics=MERGED, fold="released"), tensors, compare)
    _same("gen_b1_merged_exact", generate(*one, semantics=MERGED, fold="exact"), tensors, compare)
    _matrices(model, prompts[:1], images[:1], new, tensors, compare)


def _same(tag: str, found: Generated, tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    compare.close(f"{tag} logits", found.logits, tensors[f"out/{tag}/logits"], "model")
    for row, tokens in enumerate(found.whole):
        golden = tensors[f"out/{tag}/tokens_{row}"]
        compare.equal(f"{tag} tokens {row}", tokens, golden)


def _matrices(
    model: Lavin,
    prompts: list[Prompt],
    images: Tensor,
    new: int,
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> None:
    """The affine maps of a prompt and the biases that they leave in the matrices, in both orders."""
    for tag, how in (("gen_b1_merged_exact", "exact"), ("gen_b1_merged_official", "released")):
        with folding(model):
            run = _Run(model, prompts, images, new, MERGED, None, how)  # type: ignore[arg-type]
            run._prefill()
            for key in (one for one in tensors if one.startswith(f"out/{tag}/") and one.count(".") == 1):
                name, _, number = key.removeprefix(f"out/{tag}/").rpartition(".")
                block = list(model.blocks())[int(number)]
                assert block.pia is not None
                if name.endswith("_bias") and not name.startswith("rep"):
                    holder = block.feed_forward if name.startswith("w1") else block.attention
                    compare.close(key, getattr(holder, name.removesuffix("_bias")).bias, tensors[key], "model")
                    continue
                gain = block.ffn_norm.weight
                one = affine(block.pia, run.cache.router[int(number)][0], run.cache.globe[int(number)][0])
                found = gain[:, None] * one.matrix() if name == "rep_matrix" else gain * one.bias
                compare.close(key, found, tensors[key], "model")


class _Characters:
    """The stub of the golden case: a token a character."""

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        return [1] * bos + [3 + ord(letter) % 90 for letter in text] + [2] * eos


TOKENIZED = ((24, "Which one?Response:", "B."), (12, "Long prompt!", "yes"), (40, "Hi:", "The answer"))


def text_protocol(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Prompts and targets of six formats, ids and labels, the authors' reading of answers, the learning rate."""
    names = ("question", "answer", "hint", "lecture", "solution", "caption")
    problems = {
        name: Problem(choices=tuple(one["choices"]), **{field: one[field] for field in names})
        for name, one in case["records"].items()
    }
    for one in case["prompt_cases"]:
        problem, tag = problems[one["qid"]], f"{one['format']} {one['qid']}"
        compare.equal(f"prompt {tag}", prompt_of(problem, one["format"], use_caption=one["use_caption"]), one["prompt"])
        compare.equal(f"target {tag}", target_of(problem, one["format"]), one["target"])
    for one in case["answer_extraction"]:
        compare.equal(f"answer of {one['text'][:20]}", official_answer(one["text"]), one["pred"])
    for number, (most, prompt, target) in enumerate(TOKENIZED):
        found = tokenize(_Characters(), prompt, target, most)
        for name, value in zip(("example", "labels", "example_mask"), found, strict=True):
            compare.equal(f"{name} {number}", value, tensors[f"out/tokenize{number}/{name}"])
    # In epochs: 9e-3 is of 256 samples, and a step takes 32.
    plan = StagePlan("tune", StageSettings(learning_rate=9e-3 * 32 / 256), samples=0, steps=20, warmup=2, ranks=1)
    for epoch, rate in zip(tensors["in/lr_epochs"].tolist(), tensors["out/lr"].tolist(), strict=True):
        compare.close(f"rate at {epoch}", plan.rate(epoch), rate, (1e-12, 1e-6))


def sqa_test_predictions(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """The shipped predictions: written in the authors' form, read, joined with made-up questions, and scored.

    The labels are not here: answers are made up so that the score is known (every third is right).
    """
    names = [str(one) for one in tensors["out/qid"].tolist()]
    chosen = dict(zip(names, tensors["out/pred"].tolist(), strict=True))
    subjects = ("natural science", "social science", "language science")
    samples = [
        ScienceQASample(
            name, "?", tuple("abcde"), value if at % 3 == 0 else (value + 1) % 5, "", subjects[at % 3], "grade1", "",
            "test",
        )
        for at, (name, value) in enumerate(chosen.items())
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="eas-predictions-") as place:
        path = Path(place, "preds.json")
        path.write_text(json.dumps(chosen), encoding="utf-8")
        found = read_predictions(path, samples)
    counts = {str(place): list(found.values()).count(place) for place in range(5)}
    compare.equal("predictions by option", counts, case["counts"])
    answers = [ScienceQAAnswer(found[one.id], one.answer, one.subject, one.grade, False, False) for one in samples]
    scores = scienceqa_scores(answers).accuracy
    compare.equal("by subject", [scores[name] for name in ("NAT", "SOC", "LAN")], [1.0, 0.0, 0.0])
    compare.close("in all", scores["average"], -(-len(names) // 3) / len(names), 1e-12)
