"""The rules of the house that a program can check: layout, independence, safety, sizes, words."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from house import ROOT, repository_files

from tenfold.ledger import PAPERS
from tenfold.ledger.entries import Entry, collect
from tenfold.ledger.readme import WHICH_END, WHICH_START, claims_block, papers_block, replace_block, which_block

PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
PROJECTS = [ROOT / "shared", *PACKAGES]
FILES = repository_files()
MODULES = [file for file in FILES if file.suffix == ".py" and "src" in file.parts]
# Whom the project's texts point to. Everything else (mirrors, machines, services) has no place in it.
HOSTS = {
    "aaai.org", "arxiv.org", "aclanthology.org", "doi.org", "openreview.net", "proceedings.neurips.cc",
    "proceedings.mlr.press",
    "github.com", "git-lfs.github.com", "huggingface.co", "docs.astral.sh", "www.apache.org", "www.w3.org",
    "example.org", "example.com", "127.0.0.1", "keepachangelog.com", "semver.org",
}  # fmt: skip
# No test data name a machine either; `/work`, `/home/<name>` and the like exist on one machine only.
MACHINE = re.compile(r"/(?:home|Users)/\w|/root/|/work/|/workspace/|\bC:\\\\Users")


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def text(file: Path) -> str | None:
    """A file's text; None when it is binary."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    """The calls in a module: dotted name as written, and the call."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def imported(file: Path) -> set[str]:
    """The top-level packages that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_has_the_layout_of_the_house(package):
    """Fails if a package lacks a file that its siblings have, or differs in the build hook."""
    needed = ["README.md", "CITATION.cff", "CHANGELOG.md", "claims.yaml", "configs/mini.yaml", "tests/test_parity.py"]
    needed += [f"src/{package.name}/{name}" for name in ("__init__.py", "__main__.py", "py.typed")]
    needed += [f"src/{package.name}/{name}" for name in ("commands/app.py", "evidence/claims.py")]
    assert [name for name in needed if not (package / name).is_file()] == []
    assert (package / "hatch_build.py").read_bytes() == (ROOT / "shared" / "hatch_build.py").read_bytes()


def test_a_package_imports_no_other_and_the_shared_layer_none():
    """Fails if one paper's module imports another paper's."""
    papers = {paper.package for paper in PAPERS}
    for file in MODULES:
        own = file.relative_to(ROOT).parts[1]
        assert not (imported(file) & papers) - {own}, relative(file)


def test_files_from_elsewhere_are_data_and_never_code():
    """Fails if a module unpickles without restriction, or loads a torch file without `weights_only=True`."""
    for file in MODULES:
        assert not imported(file) & {"dill", "joblib", "shelve", "marshal"}, relative(file)
        for name, call in calls(file):
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), (relative(file), call.lineno)
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(call), (relative(file), call.lineno)


def test_code_beside_a_model_is_refused_wherever_one_is_opened():
    """Fails if `trust_remote_code` is left out: transformers then asks on standard input whether to run it."""
    asking = []
    for file in MODULES:
        for name, call in calls(file):
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            told = options.get("trust_remote_code") == "False" or None in options  # None: **options
            if re.fullmatch(r"Auto\w+\.from_pretrained", name) and not told:
                asking.append(f"{relative(file)}:{call.lineno}")
    assert asking == []


def test_a_loop_that_trains_looks_at_its_loss_and_at_what_it_made():
    """Fails if weights take up a loss that is not finite, a trained model is written unseen, or a job's log says
    nothing for hours. (Golden cases and benches take single steps.)"""
    looks = ("require_finite_loss(", "isfinite(", "map(_finite", 'float("inf")')
    unseen = []
    for file in MODULES:
        content, room = file.read_text(encoding="utf-8"), file.parent.name
        trains = re.search(r"\.backward\(\)", content) and room != "parity" and file.name != "speed.py"
        searches_codes = relative(file).endswith("e3_facenet/evidence/experiments.py")  # of noises, not of weights
        if trains and not searches_codes and not any(one in content for one in looks):
            unseen.append(relative(file))
    for package in PACKAGES:
        run = (package / "src" / package.name / "training" / "run.py").read_text(encoding="utf-8")
        stages = "".join(path.read_text(encoding="utf-8") for path in package.glob("src/*/training/*.py"))
        if package.name != "fitprune" and "require_finite(" not in stages:  # a fit has no weights
            unseen.append(f"{package.name}: weights")
        if not re.search(r"\btrack\(|progress|tenfold\.runs\.stages", run + stages):
            unseen.append(f"{package.name}: progress")
    assert unseen == []


def test_libraries_log_and_never_print():
    """Fails if a module prints to standard output; the command line uses typer and rich."""
    for file in MODULES:
        for name, call in calls(file):
            to_stderr = any(ast.unparse(keyword) == "file=sys.stderr" for keyword in call.keywords)
            assert name != "print" or to_stderr, (relative(file), call.lineno)


def test_no_file_names_a_machine_or_an_unknown_host():
    """Fails if a path of somebody's machine, or a package mirror, gets into a file."""
    found = []
    for file in FILES:
        content = text(file) or ""
        found += [f"{relative(file)}: {match}" for match in MACHINE.findall(content) if file != Path(__file__)]
        hosts = {
            re.sub(r"^\w+\.(?=example\.)", "", host) for host in re.findall(r"https?://([\w.-]+\w)", content)
        } - HOSTS
        found += [f"{relative(file)}: {host}" for host in sorted(hosts)]
    assert found == []


def test_files_are_small():
    """Fails if a file over 1 MB appears outside golden data and assets, or a project's assets exceed 3 MB."""
    assets = defaultdict(int)
    for file in FILES:
        size, place = file.stat().st_size, relative(file)
        if "tests/goldens" in place:
            continue
        assert size <= 1_000_000 or "/assets/" in place, place
        if text(file) is None:
            assets["/".join(file.relative_to(ROOT).parts[:2])] += size
    assert {place: size for place, size in assets.items() if size > 3_000_000} == {}


def test_what_uv_derives_is_not_tracked(root):
    """Fails if uv.lock, which names an index, or something that make makes, is committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (root / ".git").exists():
        pytest.skip("not a git clone")
    git = ["git", "-C", str(root)]
    tracked = subprocess.run([*git, "ls-files"], check=True, capture_output=True, text=True).stdout.split("\n")
    made = re.compile(r"(^|/)(uv\.lock|__pycache__|\.venv|\.tools|wandb)(/|$)|^(dist|report|runs)/")
    assert [name for name in tracked if made.search(name)] == []
    ignored = ["uv.lock", ".venv/x", ".tools/x", "report/x", "runs/x", "dist/x", "shared/src/tenfold/__pycache__/x"]
    found = subprocess.run([*git, "check-ignore", *ignored], capture_output=True, text=True).stdout.split()
    assert found == ignored


@pytest.mark.parametrize("folder", [ROOT, *PACKAGES], ids=lambda path: path.name)
def test_citation_files_validate(folder, run, tmp_path):
    """Fails if CITATION.cff breaks its schema or names another version than the code."""
    done = run(
        Path(sys.executable).parent / "cffconvert", "--validate", "--infile", folder / "CITATION.cff", cwd=tmp_path
    )
    assert "valid" in done.stdout.lower() and "invalid" not in done.stdout.lower()
    stated = re.search(r'^version: "?([^"\n]+)', (folder / "CITATION.cff").read_text(), re.MULTILINE).group(1)
    module = next((ROOT / "shared" if folder == ROOT else folder).glob("src/*/__init__.py"))
    assert f'__version__ = "{stated}"' in module.read_text()


def test_the_tables_of_the_readmes_are_current(tmp_path):
    """Fails if a claim, its value or its evidence changes and a README's generated table does not, or if a picture of
    the report cannot be drawn."""
    # One evaluation of the claims for all tables: it is what takes the time.
    here = {package.name: collect(package.name, tmp_path / package.name) for package in PACKAGES}
    entries = [here.get(paper.package, Entry(paper)) for paper in PAPERS]
    tables = {ROOT: papers_block(entries)}
    tables |= {package: claims_block(here[package.name].ledger, here[package.name].results) for package in PACKAGES}
    stale = []
    for folder, table in tables.items():
        readme = folder / "README.md"
        fresh = replace_block(readme.read_text(), table, readme)
        if folder == ROOT:
            fresh = replace_block(fresh, which_block(entries, ROOT), readme, (WHICH_START, WHICH_END))
        if fresh != readme.read_text():
            stale.append(relative(readme))
    assert stale == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_readme_opens_with_its_picture(package):
    """Fails if the picture is missing, larger than 150 KB, or not the first thing below the title."""
    lines = (package / "README.md").read_text().splitlines()
    assert re.fullmatch(r"# .+", lines[0]) and re.fullmatch(r"!\[.{10,}\]\(picture\.png\)", lines[2])
    assert (package / "picture.png").stat().st_size <= 150 * 1024


@pytest.mark.parametrize("folder", [ROOT, *PROJECTS], ids=lambda path: path.name)
def test_links_between_the_texts_lead_somewhere(folder):
    """Fails if a file is renamed and a README still points to its old name."""
    for file in folder.glob("*.md"):
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", file.read_text()):
            assert (folder / target).exists(), (relative(file), target)


def test_the_python_of_a_readme_runs_after_a_plain_install(root):
    """Fails if it maps a model onto devices, for which transformers asks for accelerate, without requiring that."""
    for path in sorted(root.glob("packages/*/README.md")):
        stated = tomllib.loads((path.parent / "pyproject.toml").read_text())["project"]["dependencies"]
        shown = "".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
        assert "device_map=" not in shown or any(one.startswith("accelerate") for one in stated), path


HEADINGS = (
    "Install",
    "Ten lines of Python",
    "Commands",
    "What works with what",
    "What is reproduced",
    "Cite",
    "Licences",
)


def test_readmes_have_the_same_headings_in_the_same_order(root):
    """What is a paper's own stands after its commands. Fails if a README calls one otherwise, or moves it."""
    for path in sorted(root.glob("packages/*/README.md")):
        found = [line[3:].strip() for line in path.read_text().splitlines() if line.startswith("## ")]
        assert tuple(name for name in found if name in HEADINGS) == HEADINGS, path
        assert tuple(found[:3]) == HEADINGS[:3] and tuple(found[-4:]) == HEADINGS[-4:], path
