"""The cluster scripts of examples/: shell that parses, commands that exist, settings that are checked."""

import importlib
import re
import shlex
import subprocess

import pytest
from typer.testing import CliRunner

SCRIPTS = ("llava_hr", "dtnet", "dyvte")


def trainings(root, name):
    """The `-m <paper> train ...` arguments of a script, without what only the cluster knows."""
    text = (root / "examples" / "slurm" / f"{name}.sbatch").read_text().replace("\\\n", " ")
    found = re.findall(r"-m (\w+) (train [^&\"\n]*)", text)
    assert found, "no training in the script"
    return [(paper, [word for word in shlex.split(line) if word != "$resume"]) for paper, line in found]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_shell_and_asks_slurm_for_a_signal_before_the_end(root, name):
    """Fails if a quote is left open, or a job would be killed without a word."""
    path = root / "examples" / "slurm" / f"{name}.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "#SBATCH --signal=B:TERM@120" in path.read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_training_of_a_script_starts(root, name):
    """A dry run of the very command. Fails if a config, an option or a setting in it is renamed."""
    for paper, arguments in trainings(root, name):
        app = importlib.import_module(f"{paper}.commands.app").app
        if "--data" in arguments:  # without a folder the sheet's numbers of samples are counted with
            place = arguments.index("--data")
            arguments = arguments[:place] + arguments[place + 2 :]
        outcome = CliRunner().invoke(app, [*arguments, "--dry-run"])
        told = outcome.output + str(outcome.exception)
        if paper == "llava_hr":
            assert outcome.exit_code == 0, told
        else:  # they count samples in files that are not here; the settings were read before that
            assert {"dyvte": "llava_v1_5_mix665k.json", "dtnet": "dataset_coco.json"}[paper] in told


def test_the_readme_of_the_examples_names_every_script(root):
    text = (root / "examples" / "README.md").read_text()
    assert {path.name for path in (root / "examples" / "slurm").iterdir()} == {f"{name}.sbatch" for name in SCRIPTS}
    assert all(f"slurm/{name}.sbatch" in text for name in SCRIPTS)


def test_the_workflow_calls_make_targets_only(root):
    """Fails if continuous integration does what a developer cannot do with one make target."""
    import yaml

    made = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    which = jobs["versions"]["strategy"]["matrix"]["which"]
    runs = [run.replace("${{ matrix.which }}", one) for run in runs for one in which]
    assert runs and all(run.split()[0] == "make" and run.split()[1] in made for run in runs)
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
