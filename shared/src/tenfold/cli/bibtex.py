"""BibTeX for a paper, for the software and for one run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tenfold.errors import UserError, printable
from tenfold.runs import RunRecord, read_yaml
from tenfold.runs.provenance import Source

_ENTRY_TYPES = {"conference-paper": "inproceedings", "article": "article"}
_VERBATIM = ("doi", "url", "eprint")


def load_citation(path: Path) -> dict[str, Any]:
    """Read a CITATION.cff that has a `preferred-citation`.

    Raises:
        UserError: missing, broken, or without one of the fields that BibTeX needs (names it).
    """
    citation = read_yaml(path)
    if not isinstance(citation, dict):
        raise UserError("not a citation file", path, "CITATION.cff")
    for name, entry in (("", citation), ("preferred-citation.", citation.get("preferred-citation") or {})):
        for field in ("title", "authors"):
            if not entry.get(field):
                raise UserError(f"no {name}{field}", path, "a citation of the software and of its paper")
        if not isinstance(entry["authors"], list) or not all(_is_author(one) for one in entry["authors"]):
            raise UserError(f"{name}authors that have no names", path, "family-names or name of each")
    return citation


def _is_author(author: Any) -> bool:
    return isinstance(author, dict) and any(isinstance(author.get(name), str) for name in ("family-names", "name"))


def paper_bibtex(citation: dict[str, Any], package: str) -> str:
    """The paper, from `preferred-citation`; the key is first author, year and package: `ye2025fitprune`."""
    paper = citation["preferred-citation"]
    kind = _ENTRY_TYPES.get(paper.get("type", ""), "misc")
    year = paper.get("year", str(paper.get("date-published", ""))[:4])
    fields = {
        "author": _authors(paper["authors"]),
        "title": paper["title"],
        "booktitle": paper.get("collection-title") or paper.get("conference", {}).get("name"),
        "journal": paper.get("journal"),
        "year": year,
        "volume": paper.get("volume"),
        "number": paper.get("issue"),
        "pages": _pages(paper),
        "doi": paper.get("doi"),
        "url": paper.get("url"),
        **_eprint(paper.get("identifiers", [])),
    }
    family = paper["authors"][0].get("family-names") or paper["authors"][0].get("name", "")
    key = "".join(letter for letter in family.lower() if letter.isascii() and letter.isalnum())
    return _entry(kind, f"{key}{year}{package}", fields)


def software_bibtex(citation: dict[str, Any], package: str, version: str, source: Source) -> str:
    """The software at this version and, where it is known, this commit."""
    fields = {
        "author": _authors(citation["authors"]),
        "title": citation["title"],
        "version": version,
        "year": str(citation.get("date-released", ""))[:4],
        "url": citation.get("repository-code") or citation.get("url"),
        "note": f"commit {_commit(source.commit, source.dirty)}" if source.commit else None,
    }
    return _entry("software", f"{package}_{version.replace('.', '_')}", fields)


def run_bibtex(citation: dict[str, Any], record: RunRecord) -> str:
    """One run: what somebody needs to check a number, pinned by commit and fingerprints."""
    pins = [
        f"{record.package} {record.version}",
        f"commit {_commit(record.commit, record.dirty)}",
        f"seed {record.seed}",
        f"config {record.config_sha256}",
        *(f"data {name} {value}" for name, value in sorted(record.data.items())),
    ]
    fields = {
        "author": _authors(citation["authors"]),
        "title": f"Run {record.id}",
        "year": f"{record.started:%Y}",
        "note": ", ".join(pins),
    }
    return _entry("misc", record.id, fields)


def _commit(commit: str | None, dirty: bool | None) -> str:
    if commit is None:
        return "unknown"
    return f"{commit} with local changes" if dirty else commit


def _authors(authors: list[dict[str, str]]) -> str:
    names = []
    for author in authors:
        if "family-names" in author:
            names.append(f"{author['family-names']}, {author.get('given-names', '')}".rstrip(", "))
        else:
            # Braces keep an organisation's name from being read as given and family names.
            names.append(f"{{{author['name']}}}")
    return " and ".join(names)


def _pages(paper: dict[str, Any]) -> str | None:
    if "start" not in paper:
        return None
    return f"{paper['start']}--{paper['end']}" if "end" in paper else str(paper["start"])


def _eprint(identifiers: list[dict[str, str]]) -> dict[str, str]:
    for identifier in identifiers:
        value = str(identifier.get("value", ""))
        if value.lower().startswith("arxiv:"):
            return {"eprint": value[len("arxiv:") :], "archivePrefix": "arXiv"}
    return {}


def _entry(kind: str, key: str, fields: dict[str, Any]) -> str:
    """An entry; what a record from elsewhere says stays inside its field, whatever it holds."""
    key = re.sub(r"[^A-Za-z0-9_.:-]", "_", key)
    lines = []
    for name, value in fields.items():
        if value in (None, ""):
            continue
        text = _balanced(printable(" ".join(str(value).split())), trusted=name == "author")
        text = text if name in _VERBATIM else _escape(text)
        # Double braces keep the title's capitals.
        lines.append(f"  {name} = {{{{{text}}}}}" if name == "title" else f"  {name} = {{{text}}}")
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


def _balanced(text: str, *, trusted: bool) -> str:
    """Braces that close what they did not open would end the field; only an author's own braces stay."""
    if trusted and text.count("{") == text.count("}"):
        return text
    return text.replace("{", "(").replace("}", ")")


def _escape(text: str) -> str:
    for character in "&%$#_":
        text = text.replace(character, f"\\{character}")
    return text
