"""A disk that takes no more, whichever library is writing: one line, exit code 2, and nothing half-written."""

import errno
import os
import resource
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from tenfold.cli import main
from tenfold.cli.outside import refused_writing
from tenfold.runs import atomic_write_text, run, write_checkpoint
from tenfold.testing.commands import run as command
from tenfold.testing.processes import fork

BIG = torch.arange(200_000.0)  # 800 kB
LIMIT = 100_000  # bytes that a file may have


def _hdf5(path):
    with h5py.File(path, "w") as file:
        file["features"] = BIG.numpy()


def _torch_in_a_file(path):
    with open(path, "wb") as file:
        torch.save({"a": BIG}, file)


WRITERS = {
    "text": lambda path: atomic_write_text(path, "x" * 1_000_000),
    "safetensors": lambda path: save_file({"a": BIG}, path),
    "torch": lambda path: torch.save({"a": BIG}, path),
    "torch, in a file": _torch_in_a_file,
    "torch, as before": lambda path: torch.save({"a": BIG}, path, _use_new_zipfile_serialization=False),
    "numpy": lambda path: np.save(path, BIG.numpy()),
    "hdf5": _hdf5,
    "tokenizers": lambda path: Tokenizer(models.WordLevel({f"w{n}": n for n in range(20_000)}, "w0")).save(str(path)),
    "a picture": lambda path: Image.effect_noise((600, 600), 90).save(path, "PNG"),
}


def full():
    """From now on this process's files end at LIMIT, as they do on a full disk (there EFBIG is ENOSPC)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.parametrize("how", ["a result", "a checkpoint"])
@pytest.mark.parametrize("name", WRITERS)
def test_whoever_writes_it_is_one_line_and_nothing_is_left(name, how, tmp_path):
    """Fails if only OSError counts: of nine writers six raise something else, and end in a traceback."""
    app = typer.Typer()

    @app.command()
    def write():
        with run("tenfold", "train", config={}, seed=0, output=tmp_path / "run") as current:
            if how == "a result":
                WRITERS[name](current.file("made"))
            else:
                write_checkpoint(tmp_path / "run", 1, lambda folder: WRITERS[name](folder / "made"))

    def work():
        full()
        done = command(lambda: main(app))
        lines = done.err.splitlines()
        print(done)
        assert done.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), done
        assert "File too large" in lines[0] or "No space left on device" in lines[0], done

    assert os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == 0
    assert not (tmp_path / "run").exists(), sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        ValueError("errno = 2"),
        RuntimeError("unexpected pos"),
        OSError(errno.ENOENT, "no such file"),
        OSError("3 requested and nothing else"),
    ],
)
def test_a_bug_stays_one(error):
    """Fails if whatever is raised is taken for a full disk."""
    assert refused_writing(error) is None


def test_the_file_that_was_written_is_named(tmp_path):
    error = RuntimeError("closing")
    error.__context__ = OSError(errno.ENOSPC, "x", str(Path("a\x1b[2J.h5")))
    assert refused_writing(error) == "No space left on device: a\\x1b[2J.h5 (nothing was left half-written)"
