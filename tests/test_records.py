"""Records and settings from anybody, by every package's own command: what is forged is one line, and neither steers the
terminal nor becomes a citation of its own."""

from __future__ import annotations

import importlib
import json
import re

import pytest
from house import ROOT

from tenfold.runs import run as recorded
from tenfold.testing.commands import refused, run

PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
VERIFIERS = {package: importlib.import_module(f"{package}.commands.verify").VERIFIERS for package in PACKAGES}
VERBS = [(package, verb) for package in PACKAGES for verb in sorted(VERIFIERS[package])]


def entry(package):
    return importlib.import_module(f"{package}.commands.app").main


def record(package, folder, verb="eval", config=None, **metrics):
    """The file of a run that was never made."""
    with recorded(package, verb, config={"a": 1} if config is None else config, seed=0, output=folder) as current:
        current.metrics.update(metrics)
    return folder / "run.json"


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


FORGED = {
    "nested lists": lambda path: path.write_text("[" * 3000 + "]" * 3000),
    "nested objects": lambda path: path.write_text('{"config": ' * 3000 + "1" + "}" * 3000),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "1e999": lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1e999')),
    "5,000 digits": lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": ' + "1" * 5000)),
    "half a character": lambda path: path.write_text(path.read_text().replace('"eval"', '"\\ud800"')),
    "a field of its own": lambda path: changed(path, extra=1),
    "a text for a number": lambda path: changed(path, seed="0"),
}


@pytest.mark.parametrize("forge", FORGED)
@pytest.mark.parametrize("package", PACKAGES)
def test_a_forged_record_is_one_line(package, forge, tmp_path):
    """Fails if a record is read elsewhere than at the one border."""
    path = record(package, tmp_path / "run")
    FORGED[forge](path)
    for verb in ("cite", "verify"):
        refused(run(entry(package), verb, tmp_path / "run"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_record_adds_no_entry_and_no_field_to_a_citation(package, tmp_path):
    """Fails if an id, a data set's name or a version ends its BibTeX field, or reaches the terminal as it is."""
    evil = "x}, title = {Owned}}\n@evil{y, note = {\x1b[2J\ud83d"
    path = record(package, tmp_path / "run")
    changed(path, id=evil, data={evil: "sha256:" + "0" * 64}, version=evil)
    done = run(entry(package), "cite", tmp_path / "run")
    if done.code:
        refused(done)
        return
    assert re.findall(r"^@(\w+)\{", done.out, re.MULTILINE)[2:] == ["misc"], done.out
    third = done.out.split("\n@misc{")[-1]
    assert third.count("{") + 1 == third.count("}") and "\x1b" not in done.out
    assert re.findall(r"^  (\w+) = ", third, re.MULTILINE) == ["author", "title", "year", "note"], third


@pytest.mark.parametrize(("package", "verb"), VERBS)
def test_a_setting_that_no_verb_has_is_named(package, verb, tmp_path):
    """Fails if a record's config reaches a verb unchecked: a TypeError, or a run of other settings."""
    record(package, tmp_path / "run", verb, {"nonsense": [1]})
    refused(run(entry(package), "verify", tmp_path / "run"), "nonsense")


@pytest.mark.parametrize("ranks", ["2", 0, True, 2.5])
@pytest.mark.parametrize("package", ["dyvte", "eas", "flashsloth", "gamma_mod", "llava_hr"])
def test_a_number_of_ranks_that_is_none_is_named(package, ranks, tmp_path):
    """Fails if a text is compared with a number."""
    record(package, tmp_path / "run", "train", {}, ranks=ranks)
    refused(run(entry(package), "verify", tmp_path / "run"), "ranks")


# A verb that takes --set, and a setting that it has.
SET = {
    "dit_sam": "train", "dtnet": "train", "dyvte": "train", "e3_facenet": "train", "eas": "train", "fitprune": "fit",
    "flashsloth": "train", "gamma_mod": "train", "inst_diff_edit": "eval", "llava_hr": "train",
}  # fmt: skip
ODD = ("2024-13-45", "!!bool maybe", "!!int x", "[" * 3000, "1" * 5000, ".nan", "&a [*a]")


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12])
@pytest.mark.parametrize("package", PACKAGES)
def test_a_value_that_yaml_cannot_make_is_one_line(package, value, tmp_path):
    """Also by --set. Fails if one of PyYAML's dozen kinds of errors comes through, or NaN is taken for a number."""
    main = entry(package)
    config = ("--config", "mini") if package != "inst_diff_edit" else ()
    for key in ("device", "seed"):
        line = (SET[package], *config, "--set", f"{key}={value}", "--output", "new")
        refused(run(main, *line, where=tmp_path))
