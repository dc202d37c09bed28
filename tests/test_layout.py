"""The rooms of a package and who may import whom; what repeats stands once, in tenfold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import ROOT, repository_files

PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
SOURCES = [file for file in repository_files() if file.suffix == ".py" and "src" in file.parts]
FILES = [file for file in repository_files() if file.suffix == ".py"]
# Rooms by floor: a module imports from lower floors and from its own room. The paper's own files are floor 1.
FLOORS = {"checkpoints": 2, "data": 2, "miniature": 3, "training": 4, "evaluation": 4, "evidence": 5, "commands": 6}
MOST_PAPER_FILES, MOST_LINES = 12, 400
# What the paper's own files take from tenfold: errors, weights, hosts, and files of runs.
BELOW_THE_PAPER = ("tenfold.weights", "tenfold.hosts", "tenfold.runs", "tenfold.data", "tenfold.metrics")
# Written once, in tenfold, for all packages.
LIFTED = """
    Ranks ranks world_size choose_device find_device pick_device join name_accelerator require_deepspeed missing_tools
    WeightFiles StoredTensor load_into read_weights require_finite write_weights has_weights check_fits
    Comparison find_cases goldens run_each kept spread counts apart told_apart paired
    checked HostSettings new_folder shipped_config absolute command_with Clock timed
    shared_run open_log answer_left finished_before write_predictions identity flat require_same keep_identity threads
    load_host quiet_transformers refuse_misfits first_sentence prompt_text encode_batch sampling cut pad_to_square
    open_image as_list flat_images read_turn padding_of check_counts call_options
    unwrap decoder_layers visual_mask is_plain_pre_norm Tokens RaggedCache layer_mask kv_cache take take_positions
""".split()
# Same name, another thing: module -> names.
OTHER_THINGS = {
    "dtnet.evidence.claims": {"counts"},
    "fitprune.evaluation.compare": {"Comparison"},
    "dyvte.evidence.claims": {"kv_cache"},
    "eas.costs": {"Ranks"},
    "flashsloth.image_processing": {"pad_to_square"},
    "gamma_mod.evidence.figures": {"ranks"},
    "llava_hr.image_processing": {"pad_to_square"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[parts.index("src") + 1 :]).removesuffix(".__init__")


def room(name: str) -> str | None:
    """The room of a module of a package; None for the paper's own files."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else None


def imports(file: Path, known: set[str]) -> Iterator[tuple[str, int]]:
    """Modules that a file imports anywhere but for type checking, with the line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in known else node.module), node.lineno


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_consists_of_the_paper_and_of_rooms(package):
    """Fails if a 13th file stands beside the paper's, or a room gets a name of its own."""
    source = package / "src" / package.name
    papers = [file.name for file in source.glob("*.py") if not file.name.startswith("__")]
    assert len(papers) <= MOST_PAPER_FILES, sorted(papers)
    rooms = {path.name for path in source.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms - {"__pycache__"} <= FLOORS.keys()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_nothing_imports_upward(package):
    """Fails if a lower floor imports a higher one, or a room its neighbour; commands are imported by nobody."""
    files = {module_name(file): file for file in SOURCES if package in file.parents}
    wrong = []
    for name, file in files.items():
        if name.endswith("__main__"):
            continue
        own = room(name)
        for other, line in imports(file, set(files)):
            if other.split(".")[0] != package.name or room(other) == own:
                continue
            allowed = room(other) is None or (own is not None and FLOORS[room(other)] < FLOORS[own])
            if not allowed:
                wrong.append(f"{name}:{line} imports {other}")
    assert wrong == []


@pytest.mark.parametrize("package", [ROOT / "shared", *PACKAGES], ids=lambda path: path.name)
def test_there_is_no_circle_of_imports(package):
    """Fails if two modules import each other at their tops, directly or through others."""
    files = {module_name(file): file for file in SOURCES if package in file.parents}
    edges: dict[str, set[str]] = {}
    for name, file in files.items():
        tops = {node.lineno for node in ast.parse(file.read_text(encoding="utf-8")).body}
        found = {other for other, line in imports(file, set(files)) if line in tops and other in files}
        edges[name] = found - {name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                # A package's __init__ runs before its modules; it counts where it imports them itself.
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_the_paper_stands_on_little():
    """Fails if a method's file takes settings, the command line or the ledger from tenfold."""
    wrong = []
    known = {module_name(one) for one in SOURCES}
    for file in SOURCES:
        name = module_name(file)
        if (
            "tests" in file.relative_to(ROOT).parts
            or name.split(".")[0] == "tenfold"
            or room(name) is not None
            or name.endswith("__main__")
        ):
            continue
        for other, line in imports(file, known):
            if other.startswith("tenfold.") and not other.startswith(BELOW_THE_PAPER):
                wrong.append(f"{name}:{line} imports {other}")
    assert wrong == []


def test_what_repeats_stands_once():
    """Fails if a package defines again what tenfold gives to all."""
    again = []
    for file in SOURCES:
        name = module_name(file)
        if name.split(".")[0] == "tenfold":
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            defined = node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
            if defined in LIFTED and defined not in OTHER_THINGS.get(name, ()):
                again.append(f"{name}.{defined}")
    assert again == []


def test_no_file_is_long():
    """Fails if a file, a test's too, grows beyond what one sitting reads."""
    long = {file.relative_to(ROOT).as_posix(): n for file in FILES if (n := _lines(file)) > MOST_LINES}
    assert long == {}


def _lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())
