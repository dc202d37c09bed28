"""What the README shows is what runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from llava_hr.commands.app import app
from llava_hr.data.mini_world import render, scene
from llava_hr.evaluation.model import mini_folder
from tenfold.cli import package_file
from tenfold.ledger import load_ledger

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the mini model and a scene. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    render(scene(0, 0)).save("shelf.jpg")
    code = "\n".join(blocks("python"))
    for written, here in (('"llava-hr-7b-sft-1024"', repr(str(mini_folder()))), ('device="cuda"', 'device="cpu"')):
        assert code.count(written) == 1
        code = code.replace(written, here)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["visual"].shape[:2] == (1, 36)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.strip()


def test_every_command_of_the_readme_has_the_options_it_is_given() -> None:
    """Also those that need official weights. Fails if an option is renamed, or a verb is missing from the README."""
    command = typer.main.get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("llava-hr ")]
    verbs = set()
    for line in lines:
        _, verb, *arguments = shlex.split(line, comments=True)
        verbs.add(verb)
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
    assert verbs == set(command.commands) - {"report"}


def test_commands_of_the_ledger_have_the_options_they_are_given() -> None:
    """Fails if a verb that a claim names renames an option."""
    command = typer.main.get_command(app)
    claims = load_ledger(package_file("llava_hr", "claims.yaml")).claims
    for line in {claim.command for claim in claims if claim.command}:
        _, verb, *arguments = shlex.split(line)
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
