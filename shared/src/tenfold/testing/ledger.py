"""A package's ledger in tests: complete, in step with the code, and what it counts comes out."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Collection
from pathlib import Path

from tenfold.cli.bibtex import load_citation, paper_bibtex
from tenfold.cli.files import package_file
from tenfold.ledger.evidence import Recorded, evaluate, failures
from tenfold.ledger.goldens import goldens
from tenfold.ledger.schema import Ledger, load_ledger
from tenfold.runs import read_json
from tenfold.testing.commands import commands_are_known, readme_commands, verbs

README_SECTIONS = ("Install", "Ten lines of Python", "Commands", "What works with what", "What is reproduced", "Cite")


def ledger_of(package: str) -> Ledger:
    """A package's claims.yaml."""
    return load_ledger(package_file(package, "claims.yaml"))


def official_names_are_the_models(package: str) -> None:
    """The ledger's checks that compare names and shapes of the released weights with the full-size model's."""
    checks = importlib.import_module(f"{package}.evidence.claims").checks()
    compared = {name: check for name, check in checks.items() if name.startswith("official_keys")}
    assert compared, "no check compares official names"
    for name, check in compared.items():
        outcome = check()
        assert outcome.passed, f"{name}: {outcome.detail}"


def reads_well(package: str, authors: int, unshown: Collection[str] = ("report",), announced: str = "") -> None:
    """README, citation and ledger are whole and in step with the code; what ships is small.

    Every command line of README and ledger is one that the package's command takes, and the README shows every verb.

    Args:
        authors: of the paper.
        unshown: verbs that the README does not show.
        announced: an option that commands of the ledger have before it is built; their claims' notes say so.
    """
    readme_and_citation_are_whole(package, authors)
    claims_have_their_evidence(package)
    shipped_files_are_small(package)
    app, command = importlib.import_module(f"{package}.commands.app").app, package.replace("_", "-")
    claims = [claim for claim in ledger_of(package).claims if claim.command]
    later = [claim for claim in claims if announced and announced in str(claim.command)]
    silent = [claim.id for claim in later if not re.search("not (built|offered) here", str(claim.note))]
    assert not silent, f"commands that do not work, and no note says so: {silent}"
    told = [line for claim in claims if claim not in later for line in str(claim.command).split("&&")]
    lines = [shlex.split(line) for line in told]
    foreign = {words[0] for words in lines} - {command, "lmms-eval"}
    assert not foreign, f"commands of somebody else: {foreign}"
    commands_are_known(app, [words for words in lines if words[0] == command])
    shown = commands_are_known(app, readme_commands(package_file(package, "README.md"), command))
    assert shown == verbs(app) - set(unshown), shown ^ (verbs(app) - set(unshown))


def claims_have_their_evidence(package: str) -> None:
    """Every check is a claim's, every parity or analytic claim has a check, every golden file is a claim."""
    claims = ledger_of(package).claims
    checks = importlib.import_module(f"{package}.evidence.claims").checks()
    named = {claim.check for claim in claims if claim.check}
    assert named == set(checks), named ^ set(checks)
    without = [claim.id for claim in claims if claim.kind in ("parity", "analytic") and not claim.check]
    assert not without, f"claims without a check: {without}"
    folder = goldens(package)
    assert folder is not None
    # A file may have several checks, such as official_keys_7b.
    unnamed = [
        path.stem
        for path in sorted(folder.glob("*.json"))
        if not any(check.removeprefix("parity_") == path.stem or check.startswith(f"{path.stem}_") for check in named)
    ]
    assert not unnamed, f"golden files that no claim names: {unnamed}"


def counted_claims_hold(package: str, *beginnings: str) -> None:
    """The checks whose names begin so come out, but for claims that say they do not.

    Args:
        beginnings: of the names of checks that need no weights, such as "tflops_".
    """
    ledger = ledger_of(package)
    checks = importlib.import_module(f"{package}.evidence.claims").checks()
    counted = {name: check for name, check in checks.items() if name.startswith(beginnings)}
    chosen = ledger.model_copy(update={"claims": [claim for claim in ledger.claims if claim.check in counted]})
    assert chosen.claims, "nothing is counted"
    results = evaluate(chosen, counted, None)
    assert failures(chosen, results) == []
    assert "not run here" not in {result.status for result in results}
    hidden = {claim.id for claim in chosen.claims if not claim.should_hold}
    missed = {result.claim for result in results if result.status == "not reproduced"}
    assert hidden == missed, f"said not to hold: {hidden}, does not: {missed}"


def records_are_of_claims(package: str, least: int) -> None:
    """Every committed result names a claim, a commit and a day; at least so many claims of kind mini have one."""
    folder = package_file(package, "claims.yaml").parent / "results"
    kinds = {claim.id: claim.kind for claim in ledger_of(package).claims}
    records = [Recorded.model_validate(read_json(path)) for path in sorted(folder.glob("*.json"))]
    assert all(record.claim in kinds and record.commit for record in records), [record.claim for record in records]
    mini = {record.claim for record in records if kinds[record.claim] == "mini"}
    assert len(mini) >= least, f"recorded: {sorted(mini)}"


def readme_and_citation_are_whole(package: str, authors: int) -> None:
    """The README has the sections of the house, and the citation file names the paper and all its authors."""
    folder = package_file(package, "claims.yaml").parent
    headings = re.findall(r"^## (.+)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    missing = [section for section in README_SECTIONS if not any(one.startswith(section) for one in headings)]
    assert not missing, f"README.md lacks: {missing}"
    cited = load_citation(folder / "CITATION.cff")["preferred-citation"]
    assert len(cited["authors"]) == authors, cited["authors"]
    assert cited["title"] in paper_bibtex(load_citation(folder / "CITATION.cff"), package).replace("{", "").replace(
        "}", ""
    )


def shipped_files_are_small(package: str, limit: int = 3 * 2**20) -> None:
    """What a wheel carries besides code is at most 3 MB."""
    source = Path(str(importlib.import_module(package).__file__)).parent
    files = [path for path in source.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) <= limit
