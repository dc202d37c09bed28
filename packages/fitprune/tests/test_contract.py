"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import shlex

import pytest
import torch

from fitprune import Pruner, Recipe
from fitprune.commands.app import app, main
from fitprune.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold.cli import package_file
from tenfold.data import mini_host, write
from tenfold.runs import RunRecord, atomic_write_json, read_json
from tenfold.testing import commands, goldens, ledger
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.hosts import SCENARIOS, Prompts, build
from tenfold.testing.processes import apart

RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))
README = package_file("fitprune", "README.md")


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    told = commands.answers_without("fitprune", ("torch", "transformers", "matplotlib"), ("fit", "eval"))
    assert "ye2025fitprune" in told and "TextVQA_0.5.1_val.json" in told


def test_d02_the_frame_of_the_golden_cases_is_strict(tmp_path):
    """And notices one score a hair off. Fails if a tolerance is widened, or an empty folder passes."""
    goldens.frame_is_strict("fitprune", COMPUTATIONS, tmp_path)
    case = next(path for path in goldens.cases("fitprune") if path.stem == "prune_layer")
    altered = goldens.altered(case, tmp_path, "out/case0.score_self", 1.0001)
    goldens.noticed(altered, "case0 self", COMPUTATIONS, TOLERANCES)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    from fitprune.evidence import claims

    assert claims.official_keys().passed


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Training, for a method without: `fitprune fit` on the mini host, two samples."""
    folder = tmp_path_factory.mktemp("fit")
    outcome = commands.run(main, "fit", "--limit", 2, "--ratio", 0.4, "--output", folder / "run", where=folder)
    assert outcome.code == 0, outcome.err
    return folder / "run"


def test_d04_fit_writes_the_recipe_that_it_tells(fitted):
    """Fails if the recipe of the record is another than the file's, or `train` does not name `fit`."""
    told = RunRecord.load(fitted).metrics["recipes"]["0.4"]["visual_reduction"]
    assert told == Recipe.load(fitted / "recipe-0.4.json").reduction > 0.3
    outcome = commands.run(main, "train")
    assert "fitprune fit" in outcome.out + outcome.err


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if predictions, scores or the data's fingerprint are not those of the record."""
    run = tmp_path / "run"
    write.write_pope(tmp_path / "pope", 3, 1, mini_host.IMAGE_SIZE)
    options = ("--benchmark", "pope", "--data", tmp_path / "pope", "--recipe", 0.6, "--output", run)
    outcome = commands.run(main, "eval", *options)
    assert outcome.code == 0, outcome.err
    outcome = commands.run(main, "verify", run)
    assert outcome.code == 0 and "bit for bit" in outcome.out, outcome.err
    record = RunRecord.load(run)
    assert record.id in commands.run(main, "cite", run).out
    atomic_write_json(run / "run.json", {**read_json(run / "run.json"), "metrics": {**record.metrics, "score": -1.0}})
    assert commands.run(main, "verify", run).code


@torch.no_grad()
@pytest.mark.parametrize("scenario", ["left padding", "right padding"])
def test_d06_eager_and_sdpa_decide_alike_and_leave_their_inputs(scenario):
    """Fails if padding enters a score, or an input is changed in place."""
    inputs, found = Prompts("llava").batch(*SCENARIOS[scenario]), []
    kept = {name: value.clone() for name, value in inputs.items()}
    for attention in ("sdpa", "eager"):
        pruner = Pruner(RECIPE)
        with pruner(model := build("llava", attention)):
            found.append((model(**inputs).logits[:, -1], [tokens.index for tokens in pruner.entering]))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert all(torch.equal(inputs[name], kept[name]) for name in kept)


def test_d08_what_is_counted_comes_out():
    """But for the three recipes and the peer that are said not to. Fails if a formula or a recipe changes."""
    ledger.counted_claims_hold("fitprune", "saves_", "tflops_", "peer_", "prompt_", "mean_", "kv_", "scoring_", "next_")


@apart
@torch.no_grad()
def test_d09_on_the_device_a_prompt_waits_once_and_decoding_never():
    """Fails if padding, the counts of a layer or the cache are asked of the device, or copied there while it waits."""
    inputs, step = Prompts("llava").batch(*SCENARIOS["left padding"]), torch.tensor([[11]] * 3)
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)), dim=1)
    model, there, counted = build("llava"), build("llava"), []
    with Pruner(RECIPE)(model):
        first = model(**inputs, use_cache=True)
        after = model(input_ids=step, attention_mask=mask, past_key_values=first.past_key_values).logits
    with stand_in_cuda() as device:
        there.to("cuda")
        inputs, step, mask = device.move((inputs, step, mask))
        with Pruner(RECIPE)(there):
            output = there(**inputs, use_cache=True)
            counted.append(sum(device.waits_in("fitprune/", "tenfold/").values()))
            decoded = there(input_ids=step, attention_mask=mask, past_key_values=output.past_key_values).logits
            counted.append(sum(device.waits_in("fitprune/", "tenfold/").values()))
        assert counted == [1, 1], device.waits
        torch.testing.assert_close(device.values(output.logits), first.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(device.values(decoded), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "missing", "--output", "new"), ("missing",)),
        (("eval", "--config", "nonsense"), ("no such config",)),
        (("eval", "--benchmark", "vqav2", "--data", "missing"), ("missing",)),
        (("recipe", "show", "missing.json"), ("no such file",)),
        (("fit", "--config", "mini", "--set", "nonsense=1", "--output", "new"), ("nonsense",)),
        (("fit", "--device", "cuda", "--output", "new"), ("cuda",)),
    ],
)
def test_d10_one_line_and_exit_code_2(tmp_path, arguments, words):
    """Fails if there is a traceback, a second line, or a file left behind."""
    commands.refused(commands.run(main, *arguments, where=tmp_path), *words)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check or an option that README or ledger name is not there."""
    ledger.readme_and_citation_are_whole("fitprune", authors=4)
    ledger.claims_have_their_evidence("fitprune")
    ledger.shipped_files_are_small("fitprune")
    lines = [shlex.split(claim.command) for claim in ledger.ledger_of("fitprune").claims if claim.command]
    commands.commands_are_known(app, lines)
    verbs = commands.commands_are_known(app, commands.readme_commands(README, "fitprune"))
    assert verbs == commands.verbs(app) - {"train", "report"}
