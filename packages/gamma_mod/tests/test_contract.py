"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

from pathlib import Path

import gamma_mod
from gamma_mod.commands.app import main
from gamma_mod.commands.verify import VERIFIERS
from gamma_mod.evidence.findings import COMPARISONS
from gamma_mod.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold.testing import commands, goldens, ledger

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "gamma_mod"


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public module is imported at the package's import, or a name is not there."""
    commands.answers_without("gamma_mod", ("torch", "transformers", "matplotlib"), ("train", "eval"))
    assert set(gamma_mod.__all__) <= set(dir(gamma_mod)) and all(getattr(gamma_mod, n) for n in gamma_mod.__all__)


def test_d02_the_golden_cases_notice_one_number_a_hair_off_and_one_choice(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {
        ("mod_layer_infer", "out/decode_hidden"): "decoded states",
        ("tiny_model_train", "out/selected_sorted"): "chosen",
    }
    goldens.one_number_counts("gamma_mod", COMPUTATIONS, TOLERANCES, tmp_path, numbers)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("gamma_mod")


def test_d04_the_papers_configs_ship_by_name():
    """Fails if one of the paper's three trainings, or the laptop's, is not shipped."""
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert names >= {"mini", "llava-hr-7b", "llava-hr-13b", "llava-1.5-7b"}
    assert {path.stem for path in (ROOT / "configs/eval").glob("*.yaml")} >= {"mini", "released"}


def test_d05_d12_every_verb_that_computes_can_be_verified():
    """Fails if a verb that writes a record cannot be run again."""
    assert set(VERIFIERS) == {"eval", "demo", "arank", "train"}


def test_d07_the_rules_of_the_miniature_are_claims():
    """Fails if an arm is compared that no claim names."""
    ids = {claim.id for claim in ledger.ledger_of("gamma_mod").claims}
    assert set(COMPARISONS) <= ids and "mini-gate" in ids


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind. (All of them: test_cli.)"""
    refusals = {
        "train --config nonsense --output new": "no such config",
        "eval --benchmark gqa --data nowhere": "nowhere",
        "convert nowhere out": "nowhere",
        "bench --device cuda": "CUDA",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there."""
    ledger.reads_well("gamma_mod", authors=7)


def test_d11_lower_floors_never_import_higher_ones():
    """The paper imports no room; checkpoints and data only the paper; and so on."""
    floors = {"": 1, "checkpoints": 2, "data": 2, "training": 4, "evaluation": 4, "evidence": 5, "commands": 6}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts
        if path.name in ("__init__.py", "__main__.py") and len(own) == 1:
            continue
        room = own[0] if len(own) > 1 else ""
        for words in map(str.split, path.read_text(encoding="utf-8").splitlines()):
            if len(words) > 1 and words[0] in ("from", "import") and words[1].startswith("gamma_mod."):
                target = words[1].split(".")[1]
                target = target if target in floors else ""
                assert target == room or floors[target] < floors[room], f"{path}: {words}"


def test_d15_third_party_files_are_none():
    """Nothing is redistributed here: assets are this package's own."""
    assert not [path for path in SOURCE.rglob("*") if path.suffix in (".safetensors", ".png", ".bin")]
