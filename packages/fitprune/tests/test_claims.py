"""The ledger: complete, consistent with the package, and able to fail."""

import json
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest

from fitprune.evaluation.questions import find_benchmark, paper_split
from fitprune.evidence import claims, experiments, figures
from fitprune.recipe import Recipe
from tenfold.cli import package_file
from tenfold.data import mini_host
from tenfold.ledger import evaluate, load_ledger
from tenfold.ledger.evidence import failures

OWN = Path(__file__).parent / "goldens"
# Those that need no model; the golden cases have a test of their own.
CHEAP = ("saves_", "tflops_", "peer_", "prompt_", "mean_", "kv_", "scoring_", "next_")


@pytest.fixture(scope="module")
def ledger():
    return load_ledger(package_file("fitprune", "claims.yaml"))


@pytest.fixture(scope="module")
def standing(ledger):
    """Claim id -> result of every claim that is computed from formulas."""
    cheap = {name: check for name, check in claims.checks().items() if name.startswith(CHEAP)}
    chosen = [claim for claim in ledger.claims if claim.check in cheap]
    return {result.claim: result for result in evaluate(ledger.model_copy(update={"claims": chosen}), cheap, None)}


def test_every_golden_case_and_every_released_recipe_is_a_claim(ledger):
    """Fails if a golden file or a released recipe is missing from the ledger."""
    named = {claim.check for claim in ledger.claims}
    assert {path.stem for path in OWN.glob("*.json")} <= named
    recipes = [claim for claim in ledger.claims if claim.id.startswith("saves-")]
    assert len(recipes) == sum(percent > 0 for _, percent in Recipe.released_names()) == 14
    assert len(Recipe.released_names()) == 17


def test_full_claims_give_the_command_that_would_check_them(ledger):
    full = [claim for claim in ledger.claims if claim.kind == "full"]
    assert len(full) == 44
    assert all(claim.command.startswith("fitprune eval ") and "--data" in claim.command for claim in full)


def test_the_commands_of_the_ledger_name_benchmarks_and_recipes_that_there_are(ledger):
    """Fails if a benchmark is misspelt, or a claim does not say that its benchmark cannot be read here."""
    splits = {}
    for claim in ledger.claims:
        if claim.kind != "full":
            continue
        words = shlex.split(claim.command)
        name, recipe = (words[words.index(option) + 1] for option in ("--benchmark", "--recipe"))
        if ":" in recipe:
            model, _, percent = recipe.rpartition(":")
            assert Recipe.released(model, int(percent)).ratio == int(percent) / 100
        if claim.id.startswith("retake-"):
            assert "Video benchmarks are not read by this version" in claim.note
        elif name != "all":
            bench = find_benchmark(name)
            splits[bench.name] = paper_split(bench)
            assert splits[bench.name] in bench.splits
    assert len(splits) == 10 and splits["textvqa"] == "val_ocr"


@pytest.mark.parametrize(
    ("claim", "value", "digits"),
    [
        ("tflops-60", 4.40, 2),
        ("tflops-unpruned", 8.45, 2),
        ("prompt-saving-60", 51.1, 1),
        ("mean-tokens-60", 245.0, 1),
        ("kv-kept-60", 42.5, 1),
        ("scoring-overhead", 1.1, 1),
        ("saves-llava-1.5-7b-10", 6.44, 2),
        ("saves-llava-1.5-7b-20", 15.35, 2),
        ("saves-llava-1.5-7b-30", 27.90, 2),
        ("saves-llava-1.5-7b-60", 59.70, 2),
        ("saves-llava-next-7b-60", 60.30, 2),
        ("saves-llava-hr-7b-40", 38.84, 2),
        ("peer-fastv-2-50", 47.4, 1),
        ("peer-fastv-2-75", 70.7, 1),
        ("peer-fastv-3-75", 68.4, 1),
        ("peer-pyramiddrop", 53.4, 1),
        ("peer-saving-192", 67.2, 1),
        ("peer-saving-128", 78.2, 1),
        ("peer-saving-64", 89.1, 1),
    ],
)
def test_a_figure_of_the_accounting_comes_out(standing, claim, value, digits):
    """Fails if the FLOPs formula, a recipe or the number of text tokens changes."""
    assert round(standing[claim].value, digits) == value


def test_what_does_not_come_out_is_shown_as_such(ledger, standing):
    """The small recipes' labels and the 1.5 TFLOPs of 64 tokens; fails if a tolerance is widened to hide one."""
    missed = {claim for claim, result in standing.items() if result.status == "not reproduced"}
    assert missed == {f"saves-llava-1.5-7b-{percent}" for percent in (10, 20, 30)} | {"peer-tflops-64"}
    assert missed == {claim.id for claim in ledger.claims if not claim.should_hold}
    chosen = ledger.model_copy(update={"claims": [claim for claim in ledger.claims if claim.id in standing]})
    assert failures(chosen, list(standing.values())) == []


def test_a_figure_without_a_number_of_the_paper_is_not_called_reproduced(ledger, standing):
    printed = {claim.id: claim.value is not None for claim in ledger.claims}
    assert all(printed[claim] for claim, result in standing.items() if result.status == "reproduced")
    assert standing["next-flops"].status == "recorded" and standing["next-flops"].value == "52.1 to 56.8 %"


def test_the_mini_host_stands_behind_the_exactness_claims():
    """Fails if an empty recipe changes a logit, or removed tokens leave the wrong caches."""
    assert claims.zero_recipe().passed
    outcome = claims.ragged_cache()
    lengths = [int(length) for length in outcome.value.split(", ")]
    assert outcome.passed and len(lengths) == mini_host.config().text_config.num_hidden_layers
    assert lengths == list(range(lengths[0], lengths[-1] - 1, -4))


def test_the_shipped_host_can_fail(monkeypatch):
    """Fails if the check does not compare the product with chance."""
    for ours, control, passed in ((0.7, 0.5, True), (0.5, 0.7, False), (0.5, 0.5, False)):
        found = {"unpruned": 1.0, "product": ours, "random": control, "fastv": 0.2}
        monkeypatch.setattr(experiments, "shipped", lambda questions, found=found: found)
        outcome = claims.shipped_host()
        assert outcome.passed is passed and outcome.value == 100 * ours and f"{control:.1%}" in outcome.detail


def test_official_keys_can_fail(tmp_path, monkeypatch):
    """Fails if the check does not notice a golden name, shape or count that differs."""
    assert claims.official_keys().value == "295 names agree"
    folder = tmp_path / "fitprune"
    folder.mkdir()
    text = (OWN / "official_keys.json").read_text()
    monkeypatch.setenv("TENFOLD_GOLDENS", str(tmp_path))
    for old, new in (("mm_projector.2", "mm_projector.3"), ("11008", "11009"), ("7062902784", "7062902785")):
        (folder / "official_keys.json").write_text(text.replace(old, new))
        assert claims.official_keys().passed is False


def test_parity_reads_the_golden_data_that_are_named(tmp_path, monkeypatch):
    (tmp_path / "fitprune").mkdir()
    for path in OWN.glob("official_recipes.*"):
        shutil.copyfile(path, tmp_path / "fitprune" / path.name)
    monkeypatch.setenv("TENFOLD_GOLDENS", str(tmp_path))
    assert claims.parity("official_recipes").passed
    path = tmp_path / "fitprune" / "official_recipes.json"
    path.write_text(path.read_text().replace('"visual_left": 127', '"visual_left": 128'))
    assert claims.parity("official_recipes").passed is False


def test_without_golden_data_nothing_is_claimed(ledger, monkeypatch):
    monkeypatch.delenv("TENFOLD_GOLDENS", raising=False)
    for place in ("tenfold.ledger.goldens", "fitprune.evidence.claims"):
        monkeypatch.setattr(f"{place}.find_package_file", lambda module, name: None)
    parity = ledger.model_copy(update={"claims": [claim for claim in ledger.claims if claim.kind == "parity"]})
    assert {result.status for result in evaluate(parity, claims.checks(), None)} == {"not run here"}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder of results, as `claims --train` leaves them, in place of the package's own."""
    table = [
        {"method": method, "ratio": ratio, "kind": kind, "visual_reduction": ratio, "mean": 0.5, "seeds": [0.4, 0.6]}
        for method, ratio in (("unpruned", 0.0), ("product", 0.4), ("product", 0.6), ("random", 0.6))
        for kind in ("place", "two_hop")
    ]
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "mini-which.json").write_text(json.dumps({"table": table}))
    monkeypatch.setattr(claims, "find_package_file", lambda module, name: folder)
    return folder


def test_figures_are_pictures(tmp_path, recorded, monkeypatch):
    """Fails if one is not drawn, or is empty."""
    from PIL import Image

    monkeypatch.setattr(figures, "mini_host", partial(figures.mini_host, scenes=1))
    names = ("patches", "recipe-60", "delivered", "recipe-mini", "gates", "accuracy")
    drawn = claims.figures(tmp_path)
    assert tuple(figure.path.stem for figure in drawn) == names
    for figure in drawn:
        with Image.open(figure.path) as image:
            assert image.width >= 380 and len(image.convert("RGB").getcolors(1 << 20)) > 20
    assert "no evidence of where larger models look" in drawn[-2].caption


def test_what_was_not_recorded_is_not_drawn(tmp_path, recorded, monkeypatch):
    """Fails if a report cannot be made without the experiments' results."""
    shutil.rmtree(recorded)
    monkeypatch.setattr(figures, "mini_host", lambda folder: (folder / "recipe.png", folder / "patches.png"))
    monkeypatch.setattr(figures, "delivered", lambda path: path)
    assert len(claims.figures(tmp_path)) == 5
