"""What the README shows is what runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gamma_mod.commands.app import app
from tenfold.data import mini_host, miniworld

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith("gamma-mod ")]


def test_the_python_of_the_readme_runs_on_the_mini_host(tmp_path, monkeypatch):
    """Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(block for block in blocks("python") if "llava_hr" not in block)
    for written, here in (('"llava-hf/llava-1.5-7b-hf"', repr(str(mini_host.path()))), ('.to("cuda")', "")):
        assert code.count(written) == 1
        code = code.replace(written, here).replace('dtype="auto"', 'dtype="float32"')
    names = {"image": miniworld.render(miniworld.scene(0, 0), 48)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["skips"].prefill > 0 and (tmp_path / "converted" / "gamma_mod.json").exists()


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path):
    """Those for the mini host, in their order, in one folder."""
    local = next(block for block in blocks("sh") if "--config mini --output runs/mini" in block)
    for line in local.splitlines():
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "gamma_mod", *words[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "runs/arank/arank.png").exists() and (tmp_path / "runs/mini/model/gamma_mod.json").exists()


def test_every_verb_is_in_the_readme():
    """Fails if a verb is added, or renamed, and the README does not tell."""
    told = {line.split()[1] for line in commands()}
    assert set(typer.main.get_command(app).commands) - told == {"report"}


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_has_the_options_it_is_given(line):
    """Also those that need official weights. Fails if an option is renamed."""
    _, verb, *arguments = shlex.split(line, comments=True)
    typer.main.get_command(app).commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
