"""The common test suites of the libraries whose conventions the packages follow, run on ours and on the library's own.

    python benchmarks/peers.py FOLDER --output benchmarks/results/peers.json
    python benchmarks/peers.py FOLDER --only llava_hr-model --only dit_sam-predictor

FOLDER holds checkouts of transformers and diffusers at the tags of the locked versions; their tests are in no release.
The glue in `peers/` subclasses their mixins twice a suite: as `Ours...` for a package, as `Theirs...` for the library's
nearest model. A test that the library's own passes and ours does not needs a reason in `peers/reasons.yaml`.
Exit code: 0, 1 where such a test has no reason, 2 where the checkouts are not there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
GLUE = Path(__file__).resolve().parent / "peers"
LIBRARIES = ("transformers", "diffusers")
KINDS = ("refused by name", "not applicable", "upstream", "ours to mend")
OUTCOMES = ("passed", "failed", "skipped")
PICTURE = "coco_sample.png"
VERSIONS = ("torch", "transformers", "diffusers", "segment-anything", "tokenizers", "peft", "accelerate", "pytest")


@dataclass(frozen=True)
class Suite:
    """One suite of a library.

    Attributes:
        name: in the record and for `--only`.
        package: ours.
        library: whose tests these are; one of `LIBRARIES` needs a checkout.
        beside: the library's own model, for the reader.
        ours: glue with classes `Ours...`.
        theirs: glue with classes `Theirs...`; may be the same file.
    """

    name: str
    package: str
    library: str
    beside: str
    ours: Path
    theirs: Path


def _suite(package: str, library: str, beside: str, ours: str, theirs: str) -> Suite:
    what = ours.removeprefix(f"{package}_")
    return Suite(f"{package}-{what}", package, library, beside, GLUE / f"{ours}.py", GLUE / f"{theirs}.py")


SUITES = (
    _suite("llava_hr", "transformers", "LLaVA", "llava_hr_model", "llava_model"),
    _suite("llava_hr", "transformers", "LLaVA's processor", "llava_hr_processor", "llava_processor"),
    _suite("flashsloth", "transformers", "LLaVA", "flashsloth_model", "llava_model"),
    _suite("flashsloth", "transformers", "LLaVA's processor", "flashsloth_processor", "llava_processor"),
    _suite(
        "inst_diff_edit", "diffusers", "StableDiffusionImg2ImgPipeline", "inst_diff_edit_pipeline", "img2img_pipeline"
    ),
    *(
        _suite("fitprune", "transformers", f"{title} alone", f"fitprune_{family}", f"fitprune_{family}")
        for family, title in (
            ("llava", "LLaVA-1.5"),
            ("llava_next", "LLaVA-NeXT"),
            ("llava_onevision", "LLaVA-OneVision"),
            ("qwen2_vl", "Qwen2-VL"),
            ("qwen2_5_vl", "Qwen2.5-VL"),
            ("internvl", "InternVL"),
            ("idefics3", "Idefics3"),
            ("smolvlm", "SmolVLM"),
        )
    ),
    _suite("dit_sam", "segment-anything", "SamPredictor", "dit_sam_predictor", "dit_sam_predictor"),
)
# side ("Ours" or "Theirs") -> test -> (outcome, message)
Outcomes = dict[str, dict[str, tuple[str, str]]]
Tests = Mapping[str, tuple[str, str]]


class Refused(Exception):
    """What a person can put right, in one line."""


def locked(library: str) -> str:
    """The version that requirements.lock names."""
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if found := re.match(rf"{library}==([^ ]+)", line):
            return found[1]
    raise Refused(f"not in requirements.lock: {library}")


def checkout(folder: Path | None, library: str, any_version: bool) -> dict[str, str | None]:
    """What is known about a checkout.

    Raises:
        Refused: it is not there, or of another version and ``any_version`` is not set.
    """
    tags = " and ".join(f"{name} at v{locked(name)}" for name in LIBRARIES)
    expected = f"(expected: a folder with checkouts of {tags})"
    if folder is None:
        raise Refused(f"no folder named {expected}")
    place = folder / library
    start = place / "src" / library / "__init__.py"
    if not (place / "tests").is_dir() or not start.is_file():
        raise Refused(f"no checkout of {library}: {place} {expected}")
    found = re.search(r'^__version__ = "([^"]+)"', start.read_text(), re.MULTILINE)
    here = found[1] if found else "unknown"
    if here != locked(library) and not any_version:
        raise Refused(f"{library} {here}: {place} {expected}; --any-version takes it as it is")
    return {"version": here, "locked": locked(library), "commit": _commit(place), "origin": _origin(place)}


def _commit(place: Path) -> str | None:
    if not (place / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", place, "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def _origin(place: Path) -> str | None:
    """What the one who made the checkout wrote about it, where it is not just the tag."""
    path = place / "ORIGIN"
    return " ".join(path.read_text().split()) if path.is_file() else None


def run(
    glue: Path,
    library: str,
    folder: Path | None,
    limit: float,
    without: Sequence[str] = (),
    reports: Path | None = None,
) -> Outcomes:
    """Run a file of glue in a process of its own, without tests that carry one of some marks; what it has by side.
    pytest's own report is kept in ``reports``.

    Raises:
        Refused: pytest could not run it.
    """
    environment = dict(os.environ, HF_HUB_OFFLINE="1", PYTHONDONTWRITEBYTECODE="1")
    arguments = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", f"--confcutdir={glue.parent}"]
    arguments += ["-o", "python_classes=Ours* Theirs*", "-W", "ignore"]
    paths = [str(glue.parent)]
    if library in LIBRARIES and folder is not None:
        where = (folder / library).resolve()
        paths += [str(where), str(where / "utils")]
        arguments.append(f"--rootdir={where}")
        if (where / "pyproject.toml").is_file():
            arguments += ["-c", str(where / "pyproject.toml")]
    if without:
        arguments += ["-m", " and ".join(f"not {mark}" for mark in without)]
    environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [environment.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as scratch:
        report, here = Path(scratch) / "report.xml", Path(scratch) / "here"
        here.mkdir()
        _picture(here / PICTURE)
        command = [sys.executable, "-m", "pytest", str(glue), *arguments, f"--junitxml={report}"]
        try:
            done = subprocess.run(
                command, cwd=here, env=environment, capture_output=True, text=True, timeout=limit, errors="replace"
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"{glue.name} did not end in {limit:.0f} s") from None
        if done.returncode not in (0, 1) or not report.is_file():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Refused(f"pytest could not run {glue.name}: {said[-1] if said else done.returncode}")
        if reports:
            reports.mkdir(parents=True, exist_ok=True)
            (reports / f"{glue.stem}.xml").write_bytes(report.read_bytes())
        return outcomes(report)


def _picture(path: Path) -> None:
    """A picture by a name that the tests look for before they ask the hub."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(path)


def outcomes(report: Path) -> Outcomes:
    """A junit file's tests by side. An expected failure counts as skipped, an error as failed; a test with several
    entries (sub-tests) has passed where all have."""
    sides: Outcomes = {"Ours": {}, "Theirs": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        name = (case.get("classname") or "").rsplit(".", 1)[-1]
        for side, tests in sides.items():
            if name.startswith(side):
                test = f"{name.removeprefix(side)}.{case.get('name')}".removeprefix(".")
                this = _outcome(case)
                if test not in tests or OUTCOMES.index(this[0]) == 1:
                    tests[test] = this
    return sides


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (said := case.find(tag)) is not None:
            return outcome, f"{said.get('message') or ''}\n{said.text or ''}"
    return "passed", ""


def compare(ours: Tests, theirs: Tests, reasons: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Counts of both sides, and every test that the library's own passes and ours does not, with its reason."""
    differences, used = [], set()
    passed = sorted(test for test, (outcome, _) in theirs.items() if outcome == "passed")
    for test in passed:
        outcome, message = ours.get(test, ("absent", ""))
        if outcome == "passed":
            continue
        number, kind, why = _reason(test, outcome, message, reasons)
        used.add(number)
        differences.append({"test": test, "ours": outcome, "reason": kind, "why": why})
    return {
        "ours": count(ours),
        "theirs": count(theirs),
        "differences": differences,
        "unexplained": sum(one["reason"] == "unexplained" for one in differences),
        "failed beside": sorted(
            test for test, (outcome, _) in ours.items() if outcome == "failed" and test not in passed
        ),
        "unused reasons": [one["test"] for number, one in enumerate(reasons) if number not in used],
    }


def _reason(test: str, outcome: str, message: str, reasons: Sequence[Mapping[str, str]]) -> tuple[int | None, str, str]:
    for number, one in enumerate(reasons):
        if fnmatchcase(test, one["test"]):
            refused = any(f"{error}:" in message for error in ("UserError", "InputError"))
            if one["kind"] == "refused by name" and outcome == "failed" and not refused:
                continue  # a crash is no refusal
            return number, one["kind"], one["why"]
    lines = [line for line in message.splitlines() if line.strip()]
    return None, "unexplained", lines[0][:200] if lines else outcome


def count(tests: Tests) -> dict[str, int]:
    """Tests by outcome."""
    found = Counter(outcome for outcome, _ in tests.values())
    return {outcome: found[outcome] for outcome in OUTCOMES}


def load_reasons(path: Path) -> dict[str, list[dict[str, str]]]:
    """suite -> entries `test` (a pattern), `kind`, `why`.

    Raises:
        Refused: an entry of another form.
    """
    table = yaml.safe_load(path.read_text()) or {}
    for suite, entries in table.items():
        for one in entries:
            if set(one) != {"test", "kind", "why"} or one["kind"] not in KINDS:
                raise Refused(f"{path}: {suite}: {one} (expected: test, kind, why; kind {', '.join(KINDS)})")
    return table


def main(arguments: Sequence[str], suites: Sequence[Suite] = SUITES, reasons: Path = GLUE / "reasons.yaml") -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="with checkouts of transformers and diffusers")
    parser.add_argument("--only", action="append", help="a suite's name; may be repeated")
    parser.add_argument(
        "--any-version", action="store_true", help="take checkouts of other versions; the record says so"
    )
    parser.add_argument("--output", type=Path, help="json; suites that are not run keep what it says")
    parser.add_argument("--without", action="append", default=[], metavar="MARK", help="leave out tests with this mark")
    parser.add_argument("--reports", type=Path, help="a folder that keeps pytest's reports")
    parser.add_argument(
        "--judge", action="store_true", help="read the reports that --reports has kept: reasons changed"
    )
    parser.add_argument("--limit", type=float, default=7200, help="seconds a suite may take")
    options = parser.parse_args(arguments)
    try:
        return _run_all(options, suites, load_reasons(reasons))
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2


def _run_all(options: argparse.Namespace, suites: Sequence[Suite], reasons: Mapping[str, Any]) -> int:
    names = [suite.name for suite in suites]
    if unknown := sorted(set(options.only or ()) - set(names)):
        raise Refused(f"no suite {unknown[0]} (expected: {', '.join(names)})")
    chosen = [suite for suite in suites if not options.only or suite.name in options.only]
    needed = [name for name in LIBRARIES if any(suite.library == name for suite in chosen)]
    made_from = {name: checkout(options.folder, name, options.any_version) for name in needed}
    if needed and find_spec("parameterized") is None:
        raise Refused(
            "not installed: parameterized (expected: what the libraries' tests import, from the package index)"
        )
    record: dict[str, Any] = {"suites": {}}
    if options.output and options.output.is_file():
        record = json.loads(options.output.read_text())
    done: dict[Path, Outcomes] = {}
    for suite in chosen:
        print(f"{suite.name}: {suite.library}'s tests on {suite.package} and {suite.beside}", flush=True)
        for glue in {suite.ours, suite.theirs} - set(done):
            kept = options.reports / f"{glue.stem}.xml" if options.judge and options.reports else None
            done[glue] = (
                outcomes(kept)
                if kept and kept.is_file()
                else run(glue, suite.library, options.folder, options.limit, options.without, options.reports)
            )
        found = compare(done[suite.ours]["Ours"], done[suite.theirs]["Theirs"], reasons.get(suite.name, ()))
        about = {
            "package": suite.package,
            "library": suite.library,
            "beside": suite.beside,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "tag": _tag(suite.library, made_from),
            "checkout": made_from.get(suite.library),
            "versions": {name: version(name) for name in VERSIONS},
            "without": options.without,
            "python": platform.python_version(),
        }
        record["suites"][suite.name] = about | found
        show(suite.name, found)
        if options.output:
            options.output.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return int(any(record["suites"][suite.name]["unexplained"] for suite in chosen))


def _tag(library: str, made_from: Mapping[str, Mapping[str, str | None]]) -> str:
    here = made_from[library]["version"] if library in made_from else version(library)
    return f"v{here}"


def show(name: str, found: Mapping[str, Any]) -> None:
    """A suite's counts and differences."""
    for side in ("ours", "theirs"):
        print(f"  {side:6}  " + "  ".join(f"{number} {outcome}" for outcome, number in found[side].items()))
    for one in found["differences"]:
        print(f"  {one['test']}: {one['ours']}; {one['reason']}: {one['why']}")
    for test in found["unused reasons"]:
        print(f"  a reason that no test needs: {test}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
