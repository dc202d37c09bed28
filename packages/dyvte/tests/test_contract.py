"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

from pathlib import Path

import torch
from dyvte_fixtures import THRESHOLD, host, rows

from dyvte import VisualExit
from dyvte.commands.app import main
from dyvte.commands.verify import VERIFIERS
from dyvte.evidence.parity import COMPUTATIONS, TOLERANCES
from dyvte.evidence.rehearsal import run_rehearsal
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger

PACKAGE = Path(__file__).parent.parent


def test_d01_import_help_and_cite_load_nothing_heavy():
    """And a folder of release wheels installs by the version. Fails if a heavy library becomes a plain dependency."""
    told = commands.answers_without("dyvte", ("torch", "transformers", "matplotlib"), ("train", "eval"))
    trees = ("gqa", "pope", "scienceqa", "textvqa", "mmbench", "mme", "seed", "mmvet")
    assert all(name in told for name in (*trees, "2411.19628"))
    text = (PACKAGE / "pyproject.toml").read_text()
    needed = text.partition("dependencies = [")[2].partition("]")[0]
    assert "TENFOLD_PIN" in text and all(one not in needed for one in ("torchvision", "wandb", "lmms", "deepspeed"))


def test_d02_the_golden_cases_notice_one_logit_a_hair_off_and_one_label(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("gate_forward", "out/logits"): "logits", ("label_rule", "out/gate_labels"): "labels"}
    goldens.one_number_counts("dyvte", COMPUTATIONS, TOLERANCES, tmp_path, numbers)


def test_d03_official_names_are_the_gates():
    """Of both sizes, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("dyvte")


def test_d04_the_papers_configs_ship_by_name():
    """Fails if one of the paper's two trainings, or the laptop's, is not shipped."""
    assert {path.stem for path in (PACKAGE / "configs").glob("*.yaml")} == {"mini", "llava-1.5-7b", "llava-1.5-13b"}


@torch.no_grad()
def test_d06_eager_and_sdpa_decide_alike():
    """Fails if a gate reads another state under one of them."""
    found = []
    for attention in ("sdpa", "eager"):
        model, gates = host("llava", attention)
        with VisualExit(gates, THRESHOLD)(model) as exit:
            found.append((model(**rows()).logits[:, -1], exit.exit_layers()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    assert found[0][1] == found[1][1]


def test_d07_the_rules_stand_in_the_ledger_and_the_miniature_is_on_record():
    """Fails if a gate or a control is not said before its number, or a record names no claim or no commit."""
    text = (PACKAGE / "claims.yaml").read_text()
    for words in (
        "Validity gates, first",
        "no verdict",
        "shuffled within each kind",
        "best mixture of two fixed exits",
    ):
        assert words in text
    ledger.records_are_of_claims("dyvte", least=6)


def test_d08_what_is_counted_comes_out():
    """Fails if a formula, a dimension or a prompt's length changes."""
    ledger.counted_claims_hold("dyvte", "dense_", "implied_", "tflops_", "saves_", "gate_", "fastv_", "kv_", "updates")


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind. (All of them: test_cli.)"""
    refusals = {
        "eval --gates nowhere --device cpu --benchmark gqa": "no such gates",
        "eval --config nonsense": "no such config",
        "train --config mini --samples nowhere.json --output new": "nowhere.json",
        "eval --device cuda --benchmark gqa": "no such CUDA device",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there."""
    ledger.reads_well("dyvte", authors=7)


def test_d12_every_verb_that_makes_a_run_can_be_verified():
    """Fails if a verb that writes a record cannot be run again."""
    assert set(VERIFIERS) == {"train", "eval", "demo", "analyze"}


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at two layers; at full size its record is committed. Fails if a step does not follow."""
    found = run_rehearsal(tmp_path, steps := Steps(), layers=2, hidden=128, tower=2)
    assert [step["step"] for step in steps.rows][-2:] == ["prefill and 4 tokens with an exit", "evaluate a question"]
    assert found["evaluated"]["questions"] == 1
    assert found["tokens"] == 640 and found["kv_lengths"][0] >= 640 - 1
