"""`dyvte claims --train`: gates of several seeds on the mini host, and every arm of the miniature by question.

Hosts of other training seeds are taken from ``hosts/0, hosts/1, ...`` in the output folder where they have been put
there (`python -m tenfold.data.train_mini_host`); without them the record stands on the host that ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenfold.cli import Experiments, Finding

GATE_SEEDS = (0, 1, 2)
# Worlds of the questions: gates are trained on one, thresholds found on another, the record asks a third.
TRAIN_WORLD, CALIBRATION_WORLD, RECORD_WORLD = 11, 12, 13
TRAIN, CALIBRATION, RECORD = 120, 30, 100  # questions of each kind
UPDATES = 70.0
# Mean exit layers that are asked for, as shares of the layers.
BUDGETS = (0.25, 0.4, 0.5)
SLACK = 0.01


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"asks the mini host {TRAIN + CALIBRATION + RECORD} questions of each kind and trains gates with "
        f"{len(GATE_SEEDS)} seeds on its answers (about 10 minutes on two cores)",
        conduct,
    )


def conduct(folder: Path) -> list[Finding]:
    """Measure every host and gate seed, then judge the claims."""
    from dyvte.evidence.findings import judge
    from tenfold.data import mini_host

    own = sorted(path for path in (folder / "hosts").glob("*") if path.is_dir()) if folder.is_dir() else []
    hosts = own or [mini_host.path()]
    return judge([measure(path) for path in hosts])


def measure(
    host: Path,
    *,
    seeds: tuple[int, ...] = GATE_SEEDS,
    counts: tuple[int, int, int] = (TRAIN, CALIBRATION, RECORD),
    worlds: tuple[int, int, int] = (TRAIN_WORLD, CALIBRATION_WORLD, RECORD_WORLD),
) -> dict[str, Any]:
    """Everything that is measured of one host.

    Args:
        host: its folder.
        seeds: of the gates.
        counts: questions of each kind to train on, to find thresholds on, and to record.
        worlds: their seeds.

    Returns:
        "curve", "oracle" and the gates' facts; and per gate seed and set of gates the rows of `dyvte.miniature.arms`.
    """
    from dyvte.calibration import exits_at
    from dyvte.miniature import arms
    from dyvte.miniature.gates import PUBLISHED_UPDATES, table_margins, train_gates
    from dyvte.miniature.tables import host_config, make_table
    from dyvte.miniature.world import asked
    from tenfold.data import mini_host
    from tenfold.runs import fingerprint

    model, processor = mini_host.load(host)
    slacks = (0.0, SLACK)
    train, calibration, record = (
        make_table(model, processor, asked(world, count), slacks) for world, count in zip(worlds, counts, strict=True)
    )
    config = host_config(model)
    best = arms.oracle(record)
    found: dict[str, Any] = {
        "host": fingerprint(host),
        "layers": config.layers,
        "questions": len(record.kinds),
        "curve": arms.curve(record),
        "curve_by_kind": {
            kind: (100 * record.right[[i for i, k in enumerate(record.kinds) if k == kind]].float().mean(0)).tolist()
            for kind in dict.fromkeys(record.kinds)
        },
        "oracle": {
            **arms.row(record, best),
            "spread_within_kinds": arms.spread_within_kinds(record, best),
        },
        "exit_labels": {str(slack): train.labels[slack].double().mean(0).tolist() for slack in slacks},
        "seeds": [],
    }
    for seed in seeds:
        rows: dict[str, Any] = {"seed": seed}
        for name, slack, updates in (
            ("slack", SLACK, UPDATES),
            ("published labels", 0.0, UPDATES),
            ("published steps", 0.0, PUBLISHED_UPDATES),
        ):
            gates = train_gates(train, config, seed, updates, slack)
            margins, asked_for = table_margins(gates, record), table_margins(gates, calibration)
            thresholds = [arms.nearest_threshold(asked_for, share * (config.layers - 1)) for share in BUDGETS]
            rows[name] = {
                "budgets": [{"threshold": t, **arms.row(record, exits_at(margins, t))} for t in (*thresholds,)],
                "published_rule": arms.row(record, exits_at(margins, 0.0)),
            }
        found["seeds"].append(rows)
    return found
