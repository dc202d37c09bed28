"""`claims --train`: a paper's mini experiments, all seeds and variants, as results that can be committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.runs import RunRecord, atomic_write_json, run
from tenfold.runs.context import plain
from tenfold.runs.provenance import hardware, package_source

if TYPE_CHECKING:
    from tenfold.ledger.schema import Value

RESULTS = "results"


@dataclass(frozen=True)
class Finding:
    """What the experiments say about one claim.

    Attributes:
        claim: its id in claims.yaml.
        value: our number, e.g. the mean over seeds.
        passed: whether the claim came out; None: measured, nothing to compare it with.
        detail: what a reader should know, e.g. "97.1 ± 0.4 against 63.0 ± 1.2 %, 3 seeds".
        more: further fields of the result, such as the table that the figures are drawn from.
    """

    claim: str
    value: Value
    passed: bool | None
    detail: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiments:
    """A package's mini experiments.

    Attributes:
        announcement: what will be trained and how long that takes, said before it starts.
        conduct: does it; its argument is a folder for what it makes, in which a killed run goes on.
    """

    announcement: str
    conduct: Callable[[Path], Iterable[Finding]]


def conduct(package: str, experiments: Experiments, output: Path) -> RunRecord:
    """Run the experiments and write `output/results/<claim>.json`, one for each finding, and `output/run.json`.

    These files, copied into the package's own `results` folder, are what `claims` shows as recorded.

    Raises:
        UserError: `output` holds a finished run or cannot be written; whatever the experiments raise.
    """
    with run(package, "claims --train", config={}, seed=0, output=output) as current:
        findings = list(experiments.conduct(output))
        source, machine = package_source(package), hardware()
        for finding in findings:
            result = {
                "claim": finding.claim,
                "value": finding.value,
                "passed": finding.passed,
                "detail": finding.detail,
                "date": datetime.now(UTC).date().isoformat(),
                "commit": f"{source.commit} with local changes" if source.dirty else source.commit,
                "device": machine.gpu or machine.cpu,
                "run_id": current.id,
                **finding.more,
            }
            atomic_write_json(current.file(f"{RESULTS}/{finding.claim}.json"), plain(result))
        current.metrics.update({finding.claim: finding.value for finding in findings})
    assert current.record is not None
    return current.record
