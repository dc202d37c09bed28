"""What a search found, as a file: preferences, the list that they give, and where they come from.

result = SearchResult.load("search.json")
plan = result.plan(adapter_rank=128, pia_rank=256)
result.sha256                                  # stands in the record of every run that uses it
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eas.plan import Plan
from eas.search import RULES, Search
from tenfold import UserError
from tenfold.runs import atomic_write_json, read_json

FORMAT = "eas-search"


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        rule: its name among `eas.search.RULES`, or "sensitivity".
        sites, removed: how many attentions there are, and how many go.
        preferences: of every site; the largest go.
        skip: the sites that go, the most dispensable first.
        margin: preference of the last that goes less that of the first that stays.
        updates: of the preferences.
        seed: of the search.
        host: fingerprint of the frozen model.
        data: fingerprint of what it was trained and scored on.
    """

    rule: str
    sites: int
    removed: int
    preferences: tuple[float, ...]
    skip: tuple[int, ...]
    margin: float
    updates: int
    seed: int
    host: str = ""
    data: str = ""

    @classmethod
    def of(cls, search: Search, *, seed: int, host: str = "", data: str = "") -> SearchResult:
        """The result of a search that is done."""
        return cls(
            rule=search.rule.name,
            sites=search.sites,
            removed=search.removed,
            preferences=tuple(search.preferences.tolist()),
            skip=search.order()[: search.removed],
            margin=search.margin(),
            updates=search.updates,
            seed=seed,
            host=host,
            data=data,
        )

    @property
    def sha256(self) -> str:
        """Of the content, whatever the file's layout."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def plan(self, **sizes: Any) -> Plan:
        """The plan that skips what was found; `sizes` are the other fields of `eas.plan.Plan`."""
        return Plan(layers=self.sites, skip=tuple(sorted(self.skip)), **sizes)

    def save(self, path: str | Path) -> None:
        """Write it as json, whole or not at all."""
        atomic_write_json(path, self._content())

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def load(cls, path: str | Path) -> SearchResult:
        """Read it.

        Raises:
            UserError: no such file, no search result, or one whose numbers do not go together.
        """
        content = read_json(path)
        names = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping) or content.get("format") != FORMAT or set(content) != {"format", *names}:
            raise UserError("no search result", path, f"what eas search writes: {', '.join(names)}")
        values = {name: content[name] for name in names}
        if values["rule"] not in (*RULES, "sensitivity") or not all(
            isinstance(values[k], str) for k in ("host", "data")
        ):
            raise UserError(f"rule {values['rule']!r}", path, f"{', '.join(RULES)} or sensitivity")
        for name in ("sites", "removed", "updates", "seed"):
            if type(values[name]) is not int:
                raise UserError(f"{name} is {str(values[name])[:40]!r}", path, "a whole number")
        _finite(values["preferences"], values["sites"], path)
        _finite([values["margin"]], 1, path)
        order = sorted(range(values["sites"]), key=lambda site: -values["preferences"][site])
        if values["skip"] != order[: values["removed"]]:
            raise UserError("a skip list that its preferences do not give", path, f"{order[: values['removed']]}")
        return cls(**values | {"preferences": tuple(values["preferences"]), "skip": tuple(values["skip"])})


def _finite(values: Any, count: int, path: str | Path) -> None:
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != count or not all(math.isfinite(value) for value in values):
        raise UserError("preferences that are no numbers, or too few", path, f"{count} finite numbers")
