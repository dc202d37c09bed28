"""No verb prints what other libraries have to say: their bars, and their notices of how we call them."""

import json
import os
import re
import subprocess
import sys

import pytest
from house import ROOT

PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
BARS = ("it/s]", "s/it]", "Loading pipeline components", "Loading weights", "Writing model shards")


def watched(tmp_path, package, *arguments, **more):
    """A command's foreign texts, as `tests/watched.py` notes them, and all that reached its descriptors.

    Args:
        more: variables of its environment.
    """
    notes, wrapper = tmp_path / "notes.jsonl", ROOT / "tests" / "watched.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "PYTHONWARNINGS"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, wrapper, notes, package, *arguments],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()], done.stdout


def assert_quiet(foreign, everything):
    assert foreign == []
    # What is written below Python, or by processes of its own.
    assert [bar for bar in BARS if bar in everything] == []
    assert re.findall(r"^.*(?:Warning:|\[W\d|\[transformers\]|Setting accelerator).*$", everything, re.MULTILINE) == []


def test_a_demo_on_a_terminal_prints_only_lines_of_ours(tmp_path):
    """The noisiest library's. Fails if `main` no longer silences what is imported behind it."""
    assert_quiet(*watched(tmp_path, "inst_diff_edit", "demo", "--output", "made"))


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_what_make_demo_runs_prints_only_lines_of_ours(tmp_path, package):
    assert_quiet(*watched(tmp_path, package, "demo", "--output", "made"))
    # To an output of ASCII, as a job's log may be: fails if a dash, a Greek letter or a table's border ends it.
    foreign, everything = watched(tmp_path, package, "claims", PYTHONIOENCODING="ascii")
    assert_quiet(foreign, everything)
    assert everything.isascii()


NOISY = """
import sys, warnings, logging
from tenfold.cli import main
def app():
    import tqdm.auto, transformers, diffusers
    from huggingface_hub.utils import tqdm as download
    list(tqdm.auto.tqdm(range(3), desc="a bar"))
    list(download(range(3), desc="a download", disable=False))
    warnings.warn("a deprecation", FutureWarning)
    for library in (transformers, diffusers):
        library.utils.logging.get_logger(f"{library.__name__}.here").warning("a notice of %s", library.__name__)
    import deepspeed
    logging.getLogger("DeepSpeed").warning("no GPU")
    logging.getLogger("DeepSpeed").error("a failure")
    logging.getLogger("tenfold.data").warning("a line of ours")
main(app)
"""


def noisy(**more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONWARN"))}
    done = subprocess.run(
        [sys.executable, "-c", NOISY], env={**environment, **more}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_libraries_that_are_imported_behind_main_are_silent():
    """Fails if one of the settings of `quiet_libraries` is taken out."""
    said = noisy()
    assert "WARNING: a line of ours" in said and "a failure" in said
    for noise in ("a bar", "a download", "a deprecation", "a notice of", "no GPU", "Setting"):
        assert noise not in said


def test_a_user_can_have_the_noise_back():
    said = noisy(TQDM_DISABLE="", TRANSFORMERS_VERBOSITY="warning", PYTHONWARNINGS="default")
    assert "a bar" in said and "a notice of transformers" in said and "a deprecation" in said
