"""One test for each line of what "done" means that can be called here; the rest stands in files of its own."""

import json
import subprocess
import sys
from pathlib import Path

import gamma_mod
from tenfold.cli import package_file
from tenfold.cli.bibtex import load_citation
from tenfold.ledger import load_ledger

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "gamma_mod"


def test_d1_importing_needs_no_torch_and_the_command_answers_help():
    """Fails if a public module is imported at the package's import."""
    code = "import sys, gamma_mod; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(gamma_mod.__all__) <= set(dir(gamma_mod)) and all(getattr(gamma_mod, n) for n in gamma_mod.__all__)


def test_d2_every_golden_file_has_a_computation():
    from gamma_mod.evidence.parity import COMPUTATIONS

    files = [json.loads(path.read_text()) for path in (ROOT / "tests/goldens").glob("*.json")]
    assert {case["computation"] for case in files if "computation" in case} == set(COMPUTATIONS)


def test_d3_the_lists_of_weights_are_the_golden_ones():
    listed = json.loads((ROOT / "tests/goldens/official_keys.json").read_text())
    from gamma_mod.checkpoints.keys import RELEASES

    assert set(RELEASES) == {name for name in listed if not name.startswith("_")}


def test_d4_the_papers_configs_ship_by_name():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} >= {
        "mini",
        "llava-hr-7b",
        "llava-hr-13b",
        "llava-1.5-7b",
    }
    assert {path.stem for path in (ROOT / "configs/eval").glob("*.yaml")} >= {"mini", "released"}


def test_d5_d12_every_verb_that_computes_can_be_verified():
    from gamma_mod.commands.verify import VERIFIERS

    assert set(VERIFIERS) == {"eval", "demo", "arank", "train"}


def test_d7_the_rules_of_the_miniature_are_claims():
    from gamma_mod.evidence.findings import COMPARISONS

    ids = {claim.id for claim in load_ledger(package_file("gamma_mod", "claims.yaml")).claims}
    assert set(COMPARISONS) <= ids and "mini-gate" in ids


def test_d11_files_are_short_and_documented():
    """No file above 400 lines; every module opens with what it is about."""
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        assert path.name == "conftest.py" or text.lstrip().startswith('"""'), path
    assert len([path for path in SOURCE.glob("*.py") if not path.name.startswith("__")]) <= 12
    assert load_citation(package_file("gamma_mod", "CITATION.cff"))


def test_d11_lower_floors_never_import_higher_ones():
    """The paper imports no room; checkpoints and data only the paper; and so on."""
    floors = {"": 1, "checkpoints": 2, "data": 2, "training": 4, "evaluation": 4, "evidence": 5, "commands": 6}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts
        if path.name in ("__init__.py", "__main__.py") and len(own) == 1:
            continue
        room = own[0] if len(own) > 1 else ""
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("from", "import") and words[1].startswith("gamma_mod."):
                target = words[1].split(".")[1]
                target = target if target in floors else ""
                same = target == room
                assert same or floors[target] < floors[room], f"{path}: {line}"


def test_d15_third_party_files_are_none():
    """Nothing is redistributed here: assets are this package's own."""
    assert not [path for path in SOURCE.rglob("*") if path.suffix in (".safetensors", ".png", ".bin")]
