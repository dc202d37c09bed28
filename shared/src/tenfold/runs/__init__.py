"""Runs: records, metrics, checkpoints, seeds, and files that appear whole or not at all.

    from tenfold.runs import run, sample_rng

    with run("fitprune", "fit", config=settings, seed=0, output=folder, data={"images": images}) as r:
        r.log(step=1, loss=0.7)
        recipe.save(r.file("recipe.json"))
        r.metrics["reduction"] = 0.597

Importing this module needs no torch; what works on tensors or generators of torch imports it when called.
"""

from tenfold.runs.checkpoints import checkpoint_step, last_complete_checkpoint, write_checkpoint
from tenfold.runs.context import Run, run
from tenfold.runs.files import (
    append_jsonl,
    atomic_directory,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_json,
    read_jsonl,
    read_text,
    read_yaml,
)
from tenfold.runs.fingerprints import fingerprint
from tenfold.runs.progress import track
from tenfold.runs.record import Hardware, RunRecord
from tenfold.runs.seeding import sample_generator, sample_rng, seed_everything
from tenfold.runs.trainer import AtomicCheckpointMixin

__all__ = [
    "AtomicCheckpointMixin",
    "Hardware",
    "Run",
    "RunRecord",
    "append_jsonl",
    "atomic_directory",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "checkpoint_step",
    "fingerprint",
    "last_complete_checkpoint",
    "read_json",
    "read_jsonl",
    "read_text",
    "read_yaml",
    "run",
    "sample_generator",
    "sample_rng",
    "seed_everything",
    "track",
    "write_checkpoint",
]
