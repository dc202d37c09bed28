"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import pytest
import torch
from fitprune_releases import RELEASE, VISION

from fitprune import Pruner, Recipe
from fitprune.checkpoints.release import TowerConfig
from fitprune.commands.app import main
from fitprune.evidence.parity import COMPUTATIONS, TOLERANCES
from fitprune.evidence.rehearsal import rehearse
from tenfold.data import mini_host, write
from tenfold.runs import RunRecord
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger, properties
from tenfold.testing.hosts import SCENARIOS, Prompts, build

RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    told = commands.answers_without("fitprune", ("torch", "transformers", "matplotlib"), ("fit", "eval"))
    assert "ye2025fitprune" in told and "TextVQA_0.5.1_val.json" in told


def test_d02_the_golden_cases_notice_one_score_a_hair_off(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("prune_layer", "out/case0.score_self"): "case0 self"}
    goldens.one_number_counts("fitprune", COMPUTATIONS, TOLERANCES, tmp_path, numbers, factor=1.0001)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("fitprune")


def test_d04_fit_writes_the_recipe_that_it_tells(tmp_path):
    """Training, for a method without. Fails if the record tells another recipe, or `train` does not name `fit`."""
    outcome = commands.run(main, "fit", "--limit", 2, "--ratio", 0.4, "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    told = RunRecord.load(tmp_path).metrics["recipes"]["0.4"]["visual_reduction"]
    assert told == Recipe.load(tmp_path / "recipe-0.4.json").reduction > 0.3
    commands.refused(commands.run(main, "train"), "fitprune fit")


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if predictions, scores or the data's fingerprint are not those of the record."""
    write.write_pope(tmp_path / "pope", 3, 1, mini_host.IMAGE_SIZE)
    options = ("eval", "--benchmark", "pope", "--data", tmp_path / "pope", "--recipe", 0.6)
    commands.verified_and_cited(main, tmp_path / "run", *options, metric="questions")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_d06_rows_of_a_batch_lose_what_they_lose_alone_and_inputs_stay(side, attention):
    """Fails if padding enters a score, eager attention decides otherwise than sdpa, or an input is changed in place."""
    inputs = Prompts("llava").batch(*SCENARIOS[f"{side} padding"])
    model, single = build("llava", attention), build("llava")
    with properties.unchanged(inputs), Pruner(RECIPE)(model) as pruner, Pruner(RECIPE)(single) as alone:
        logits = model(**inputs).logits
        for row in range(3):
            expected, real = single(**properties.alone(inputs, row)).logits[0, -1], pruner.entering[-1].real[row]
            assert torch.equal(pruner.surviving(row), alone.surviving())
            torch.testing.assert_close(logits[row][real][-1], expected, atol=1e-4, rtol=1e-4)


def test_d08_what_is_counted_comes_out():
    """But for the three recipes and the peer that are said not to. Fails if a formula or a recipe changes."""
    ledger.counted_claims_hold("fitprune", "saves_", "tflops_", "peer_", "prompt_", "mean_", "kv_", "scoring_", "next_")


def test_d09_on_the_device_a_prompt_waits_once_and_decoding_never():
    """Fails if padding, the counts of a layer or the cache are asked of the device, or copied there while it waits."""
    inputs, places = Prompts("llava").batch(*SCENARIOS["left padding"]), ("fitprune/", "tenfold/")
    properties.generates_alike(lambda: build("llava"), inputs, *places, waits=1, attach=Pruner(RECIPE))


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refusals = {
        "fit missing --output new": "missing",
        "eval --config nonsense": "no such config",
        "eval --benchmark vqav2 --data missing": "missing",
        "recipe show missing.json": "no such file",
        "fit --config mini --set nonsense=1 --output new": "nonsense",
        "fit --device cuda --output new": "cuda",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there."""
    ledger.reads_well("fitprune", authors=4, unshown=("train", "report"))


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at a tiny size. Fails if one does not follow from the one before, or the release stays."""
    tower = TowerConfig(**VISION | {"projection_dim": 16})
    settings = {**RELEASE, "vocab_size": 420, "max_position_embeddings": 1024}
    settings |= {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    found = rehearse(tmp_path, steps := Steps(tmp_path), settings, tower, text)
    names = [row["step"] for row in steps.rows]
    assert names[:4] == ["write a release", "write CLIP", "convert", "fit on 3 samples"]
    assert names[4:] == ["load in bfloat16", "answer unpruned", "answer pruned", "evaluate 10 questions"]
    assert found["words"] == [420, 448] and found["evaluated"]["questions"] == 10
    assert found["visual_tokens_left"] < found["visual_tokens"] == 16
    assert found["evaluated"]["visual_reduction"] > 0.3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "fit", "llava-hf", "pope", "samples"]
