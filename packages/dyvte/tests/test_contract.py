"""The definition of done, line by line: which test holds it, and what is short enough to be held here."""

import json
from pathlib import Path

import torch
from dyvte_fixtures import THRESHOLD, host, rows
from typer.testing import CliRunner

from dyvte.commands.app import app

PACKAGE = Path(__file__).parent.parent


def test_d01_the_package_names_what_it_needs():
    """Heavy libraries are extras; a folder of release wheels installs by the version."""
    text = (PACKAGE / "pyproject.toml").read_text()
    assert "TENFOLD_PIN" in text and 'dyvte = "dyvte.commands.app:main"' in text
    needed = text.partition("dependencies = [")[2].partition("]")[0]
    assert all(heavy not in needed for heavy in ("torchvision", "wandb", "lmms", "deepspeed"))


def test_d02_every_golden_case_is_known():
    from dyvte.evidence.parity import COMPUTATIONS, TOLERANCES
    from tenfold.ledger.goldens import find_cases

    known = {json.loads(path.read_text())["computation"] for path in find_cases(PACKAGE / "tests" / "goldens")}
    assert known <= set(COMPUTATIONS) and len(TOLERANCES) == 6


def test_d03_official_keys_are_in_test_gates():
    test_gates = sibling("test_gates")

    assert set(test_gates.FULL) == {name for name in test_gates.KEYS if name.startswith("llava")}


def test_d04_the_papers_configs_ship_by_name():
    names = {path.stem for path in (PACKAGE / "configs").glob("*.yaml")}
    assert names == {"mini", "llava-1.5-7b", "llava-1.5-13b"}


def test_d05_help_prints_the_trees_of_the_benchmarks():
    told = CliRunner().invoke(app, ["eval", "--help"]).output
    assert all(name in told for name in ("gqa", "pope", "scienceqa", "textvqa", "mmbench", "mme", "seed", "mmvet"))


@torch.no_grad()
def test_d06_eager_and_sdpa_decide_alike():
    from dyvte import VisualExit

    found = []
    for attention in ("sdpa", "eager"):
        model, gates = host("llava", attention)
        with VisualExit(gates, THRESHOLD)(model) as exit:
            found.append((model(**rows()).logits[:, -1], exit.exit_layers()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    assert found[0][1] == found[1][1]


def test_d07_the_rules_stand_in_the_ledger_before_the_record():
    text = (PACKAGE / "claims.yaml").read_text()
    for words in (
        "Validity gates, first",
        "no verdict",
        "shuffled within each kind",
        "best mixture of two fixed exits",
    ):
        assert words in text


def test_d08_and_d09_are_in_test_costs_and_test_needs():
    test_costs = sibling("test_costs")
    test_needs = sibling("test_needs")

    assert callable(test_costs.test_a_layer_costs_what_torch_counts)
    assert callable(test_needs.test_need_02_no_map_of_all_tokens_is_made)


def test_d10_refusals_are_in_test_cli():
    test_cli = sibling("test_cli")

    marks = test_cli.test_what_is_wrong_is_one_line.pytestmark
    assert len(marks[0].args[1]) >= 25


def test_d11_the_readme_and_the_citation_are_whole():
    from tenfold.runs import read_yaml

    readme = (PACKAGE / "README.md").read_text()
    for section in (
        "Install",
        "Ten lines of Python",
        "Commands",
        "What works with what",
        "What is reproduced",
        "Cite",
        "Licence",
    ):
        assert f"## {section}" in readme
    cited = read_yaml(PACKAGE / "CITATION.cff")
    assert cited["preferred-citation"]["year"] == 2025 and len(cited["preferred-citation"]["authors"]) == 7


def test_d12_every_verb_that_makes_a_run_can_be_verified():
    from dyvte.commands.verify import VERIFIERS

    assert set(VERIFIERS) == {"train", "eval", "demo", "analyze"}


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at two layers; at full size its record is committed."""
    from dyvte.evidence.rehearsal import run_rehearsal

    found = run_rehearsal(tmp_path / "work", layers=2, hidden=128, tower=2)
    assert [step["step"] for step in found["steps"]][-1].startswith("prefill")
    assert found["tokens"] == 640 and found["kv_lengths"][0] >= 640 - 1


def test_assets_are_small():
    size = sum(path.stat().st_size for path in (PACKAGE / "src").rglob("*") if path.is_file() and path.suffix != ".py")
    assert size < 3 * 2**20


def sibling(name):
    """Another test file of this folder; other packages have files of the same names."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location(f"dyvte_{name}", Path(__file__).parent / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
