"""The shared layer's frame works in an environment without torch."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("torch", "transformers", "wandb", "matplotlib"):
    sys.modules[name] = None  # any import of it fails
import tenfold, tenfold.cli, tenfold.ledger, tenfold.runs
tenfold.runs.seed_everything(0)
with tenfold.runs.run("tenfold", "claims", config={}, seed=0, output=None) as run:
    pass
print(run.record.hardware.device)
"""


def test_the_frame_needs_no_torch():
    """Fails if runs, ledger or cli import torch, transformers or wandb at the top of a module."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "cpu\n"), done.stderr
