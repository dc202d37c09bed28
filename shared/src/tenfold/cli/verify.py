"""Run a recorded run again and compare.

Same versions, device and threads must give the same numbers and files, bit for bit. Where any of these
differ, each metric may move by its stated tolerance, and files are not compared.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tenfold.cli.settings import checked
from tenfold.errors import UserError
from tenfold.runs import RunRecord, fingerprint
from tenfold.runs.context import output_fingerprints, plain
from tenfold.runs.provenance import distribution_name, hardware, library_versions, package_source, package_version
from tenfold.runs.record import RECORD_NAME

Verifier = Callable[[RunRecord, Path], Mapping[str, Any]]
"""Runs a recorded verb again, from its config and seed, into a folder; returns the final metrics."""


@dataclass(frozen=True)
class Comparison:
    """One number or file, as recorded and as it came out again.

    Attributes:
        verdict: "equal", "within tolerance", "differs" or "not compared".
    """

    name: str
    recorded: Any
    again: Any
    verdict: str


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify_run`.

    Attributes:
        changes: what differs between the two environments, in words; empty: bit-equality was asked for.
        comparisons: every metric and file.
    """

    changes: list[str]
    comparisons: list[Comparison]

    @property
    def holds(self) -> bool:
        return all(comparison.verdict != "differs" for comparison in self.comparisons)


def verify_run(record: RunRecord, verifiers: Mapping[str, Verifier], tolerances: Mapping[str, float]) -> Verification:
    """Run `record`'s verb again in a temporary folder and compare.

    Args:
        verifiers: verb -> function.
        tolerances: metric name (a pattern such as "accuracy*") -> absolute tolerance; the first match counts.
            Infinity marks a measurement (seconds, bytes) that is never compared. Others must be equal.

    Raises:
        UserError: the record was edited; no verifier for the verb; data or weights are missing (from the
            verifier) or are not those of the record (names them).
    """
    if fingerprint(record.config) != record.config_sha256:
        raise UserError("its config does not match config_sha256", record.id, "a record as it was written")
    if record.verb not in verifiers:
        known = ", ".join(sorted(verifiers)) or "none"
        raise UserError(f"cannot run {record.verb} again", record.id, f"one of these verbs: {known}")
    with tempfile.TemporaryDirectory(prefix="tenfold-verify-") as temporary:
        # The folder itself must not exist yet: verifiers call the verb as a user would.
        folder = Path(temporary, "run")
        metrics = plain(verifiers[record.verb](record, folder))
        if (folder / RECORD_NAME).exists():
            _compare_data(record, RunRecord.load(folder))
        outputs = output_fingerprints(folder) if folder.exists() else {}
    changes = list(_environment_changes(record))
    comparisons = _compare_metrics(record.metrics, metrics, tolerances, exact=not changes)
    comparisons += _compare_outputs(record.outputs, outputs, exact=not changes)
    return Verification(changes, comparisons)


def require_one_process(record: RunRecord) -> None:
    """Refuse to repeat in one process what several ranks made: they sum in another order.

    Raises:
        UserError: its metric "ranks" is more than one, or no number of ranks.
    """
    ranks = record.metrics.get("ranks", 1)
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise UserError(f"ranks: {ranks!r}", record.id, "a record as it was written, with a number of ranks")
    if ranks > 1:
        command = f"torchrun --nproc_per_node {ranks} -m {record.package} {record.verb}"
        raise UserError(
            f"was trained by {ranks} ranks, and this is one process",
            record.id,
            f"{command} with its config, into a new folder",
        )


def run_again(settings: type[BaseModel], function: str, *, one_process: bool = False) -> Verifier:
    """A verifier: a verb's function called once more with the recorded settings and seed.

    Args:
        settings: what the record's config is.
        function: "module:name", imported when it is asked for; called with settings, seed and a new folder, it returns
            what has `metrics`, or a list of one such.
        one_process: refuse what several ranks made.
    """

    def again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
        if one_process:
            require_one_process(record)
        module, _, name = function.partition(":")
        made = getattr(import_module(module), name)(checked(settings, record.config, record.id), record.seed, folder)
        (one,) = made if isinstance(made, list) else [made]
        return one.metrics

    return again


def _compare_data(record: RunRecord, again: RunRecord) -> None:
    for name, value in record.data.items():
        if again.data.get(name, value) != value:
            raise UserError(f"the data set {name} is not the recorded one", again.data[name], value)


def _environment_changes(record: RunRecord) -> Iterator[str]:
    commit = package_source(record.package).commit
    name = distribution_name(record.package)
    now: dict[str, Any] = {
        "commit": commit,
        **library_versions(record.package),
        name: package_version(record.package),
    }
    then: dict[str, Any] = {"commit": record.commit, **record.libraries, name: record.version}
    for hardware_values, values in ((hardware(), now), (record.hardware, then)):
        values.update(hardware_values.model_dump())
        if record.hardware.device == "cuda":
            # On the CPU another processor may choose other kernels; beside a GPU it only feeds.
            del values["cpu"]
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            yield f"{name} {then.get(name)} -> {now.get(name)}"


def _compare_metrics(
    recorded: Mapping[str, Any], again: Mapping[str, Any], tolerances: Mapping[str, float], exact: bool
) -> list[Comparison]:
    then, now = dict(_flat(recorded)), dict(_flat(again))
    comparisons = []
    for name in sorted(then.keys() | now.keys()):
        tolerance = next((value for pattern, value in tolerances.items() if fnmatch(name, pattern)), 0.0)
        verdict = _verdict(then.get(name), now.get(name), tolerance, exact)
        comparisons.append(Comparison(name, then.get(name), now.get(name), verdict))
    return comparisons


def _verdict(then: Any, now: Any, tolerance: float, exact: bool) -> str:
    if math.isinf(tolerance) and (then is None) == (now is None):
        return "not compared"
    if then == now:
        return "equal"
    numbers = isinstance(then, int | float) and isinstance(now, int | float)
    if not exact and numbers and abs(then - now) <= tolerance:
        return "within tolerance"
    return "differs"


def _compare_outputs(recorded: Mapping[str, str], again: Mapping[str, str], exact: bool) -> list[Comparison]:
    comparisons = []
    for name in sorted(recorded.keys() | again.keys()):
        then, now = recorded.get(name), again.get(name)
        equal = "equal" if then == now else "differs"
        missing = then is None or now is None
        verdict = equal if exact or missing or then == now else "not compared"
        comparisons.append(Comparison(name, then, now, verdict))
    return comparisons


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping | list):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
