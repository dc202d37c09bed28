"""What the README shows is what runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fitprune.recipe import Recipe
from tenfold.data import mini_host, miniworld

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs_on_the_mini_host(tmp_path, monkeypatch):
    """Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    layers = mini_host.config().text_config.num_hidden_layers
    Recipe("mini_host", layers, mini_host.VISUAL_TOKENS, (20, 0, 6, *[0] * (layers - 3))).save("given.json")
    code = "\n".join(blocks("python"))
    for written, here in (
        ('"llava-hf/llava-1.5-7b-hf"', repr(str(mini_host.path()))),
        ('.to("cuda")', ""),
        ('fitprune.Recipe.released("llava-1.5-7b", 60)', 'fitprune.Recipe.load("given.json")'),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    names = {"image": miniworld.render(miniworld.scene(0, 0), 48)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert Recipe.load("recipe-0.6.json") == names["recipe"]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path):
    """Those for the mini host, in their order, in one folder."""
    local = next(block for block in blocks("sh") if "fitprune demo  " in block)
    for line in local.splitlines():
        words = shlex.split(line, comments=True)
        code = "from fitprune.commands.app import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    with Image.open(tmp_path / "recipe.png") as picture:
        picture.verify()


def test_every_verb_and_every_baseline_is_in_the_readme():
    """Fails if a verb or a baseline is added, or renamed, and the README does not tell."""
    import typer

    from fitprune.commands.app import app
    from fitprune.evaluation.baselines import METHODS

    told = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("fitprune ")}
    assert set(typer.main.get_command(app).commands) - told == {"train", "report"}
    table = README.partition("## Baselines")[2].partition("## ")[0]
    for name, method in METHODS.items():
        assert f"`{name}`" in table and method.__name__ in table
