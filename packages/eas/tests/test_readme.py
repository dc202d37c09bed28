"""The README: every command in it is one that the command line takes, and the table is the ledger's."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from eas.commands.app import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^eas .*$", README, re.MULTILINE)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command):
    """Fails if a verb, an option or a value in the README is not one that the command line takes."""
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    verb = group.get_command(None, words[0])
    assert verb is not None, words[0]
    verb.make_context(words[0], list(words[1:]))


def test_the_readme_shows_the_ledger():
    """Fails if the table is missing or stale: `eas claims --all` and it must name the same claims."""
    from tenfold.cli import package_file
    from tenfold.ledger import load_ledger

    for claim in load_ledger(package_file("eas", "claims.yaml")).claims:
        assert claim.statement in README.replace("\\|", "|"), claim.id
