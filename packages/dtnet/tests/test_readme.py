"""What the README shows is what runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from dtnet_mini import write_untrained

from dtnet.commands.app import app
from tenfold.data import mini_captions, miniworld

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a mini model and a scene. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    write_untrained(tmp_path / "runs" / "mini" / "model")
    miniworld.render(mini_captions.caption_scene(0, 0).scene, 56).save("scene.png")
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks("python")), "README.md", "exec"), names)
    assert names["caption"].paths.spatial.shape == (2, 3)  # type: ignore[attr-defined]
    assert capsys.readouterr().out


def test_every_command_of_the_readme_has_the_options_it_is_given() -> None:
    """Also those that need COCO. Fails if an option is renamed, or a verb is missing from the README."""
    command = typer.main.get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("dtnet ")]
    verbs = set()
    for line in lines:
        _, verb, *arguments = shlex.split(line, comments=True)
        verbs.add(verb)
        context = command.commands[verb].make_context(verb, arguments, resilient_parsing=False)
        context.close()
    assert verbs == set(command.commands) - {"report"}


def test_commands_of_the_ledger_have_the_options_they_are_given() -> None:
    """What a claim of kind full says would check it. Fails if `eval` renames an option."""
    from tenfold.cli import package_file
    from tenfold.ledger import load_ledger

    command = typer.main.get_command(app)
    for line in {claim.command for claim in load_ledger(package_file("dtnet", "claims.yaml")).claims if claim.command}:
        _, verb, *arguments = shlex.split(line)
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
