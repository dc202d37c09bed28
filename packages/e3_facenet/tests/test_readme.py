"""What the README shows is what runs."""

import re
import shlex
from pathlib import Path

import typer
from e3_facenet_fixtures import make_generator

from e3_facenet.commands.app import app
from e3_facenet.facenet import E3FaceNet
from e3_facenet.miniature.model import mini_clip
from tenfold.cli import package_file
from tenfold.ledger import load_ledger

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def parse(line):
    command = typer.main.get_command(app)
    _, verb, *arguments = shlex.split(line, comments=True)
    command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
    return verb


def test_every_command_of_the_readme_has_the_options_it_is_given():
    """Fails if an option is renamed, or a verb is missing from the README."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("e3-facenet ")]
    assert {parse(line) for line in lines} == set(typer.main.get_command(app).commands) - {"report", "invert"}


def test_commands_of_the_ledger_have_the_options_they_are_given():
    """Fails if a verb that a claim names renames an option."""
    for line in {
        claim.command for claim in load_ledger(package_file("e3_facenet", "claims.yaml")).claims if claim.command
    }:
        parse(line)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """On a tiny model. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    assert code.count('E3FaceNet.from_pretrained("e3-facenet-512")') == 1
    tiny = E3FaceNet(make_generator(), mini_clip(0))
    monkeypatch.setattr(E3FaceNet, "from_pretrained", classmethod(lambda cls, name: tiny))
    exec(
        compile(code.replace("extract_mesh(face, portrait)", "extract_mesh(face, portrait, 24)"), "README.md", "exec"),
        {},
    )
    assert (tmp_path / "out" / "beard" / "view-4.png").is_file() and (tmp_path / "out" / "woman.glb").is_file()
