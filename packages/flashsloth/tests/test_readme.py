"""What the README shows is what runs."""

import re
from pathlib import Path

import typer
from flashsloth_runs import mini_folder

from flashsloth.commands.app import app
from flashsloth.data.mini_world import draw, render
from tenfold.cli import package_file
from tenfold.ledger import load_ledger
from tenfold.testing.commands import readme_commands

PATH = Path(__file__).parent.parent / "README.md"
README = PATH.read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On a miniature and a scene. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    render(draw(0, 0)).save("shelf.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for written, here in (('"flashsloth-3.2b"', repr(str(mini_folder(tmp_path / "mini")))), ("bfloat16", "float32"),
                          ('device="cuda"', 'device="cpu"')):  # fmt: skip
        assert code.count(written) == 1
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_every_command_of_the_readme_has_the_options_it_is_given():
    """Also those that need official weights. Fails if an option is renamed, or a verb is missing from the README."""
    command = typer.main.get_command(app)
    verbs = set()
    for _, verb, *arguments in readme_commands(PATH, "flashsloth"):
        verbs.add(verb)
        if verb != "verify":  # its folder need not be there
            command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
    assert verbs == set(command.commands) - {"report"}


def test_commands_of_the_ledger_have_the_options_they_are_given():
    """Fails if a verb that a claim names renames an option."""
    command = typer.main.get_command(app)
    claims = load_ledger(package_file("flashsloth", "claims.yaml")).claims
    lines = {claim.command for claim in claims if claim.command}
    for _, verb, *arguments in (line.split() for line in lines if line.startswith("flashsloth ")):
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
    assert len(lines) == 28
