"""What the README shows is what runs."""

import re
import shlex

import numpy as np
from dit_sam_tiny import ROOT
from PIL import Image
from typer.main import get_command

from dit_sam.commands.app import app

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(tiny, tmp_path, monkeypatch, capsys):
    """On a tiny model and two pictures. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained("my-dit")
    for name, size in (("shelf", (40, 60)), ("table", (50, 30))):
        Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(f"{name}.png")
    names = {}
    exec(compile("\n".join(blocks("python")), "README.md", "exec"), names)
    assert names["both"][1].masks.shape == (2, 50, 30) and names["masks"].shape == (1, 40, 60)
    assert capsys.readouterr().out


def test_every_command_of_the_readme_has_the_options_it_is_given():
    """Also those that need RefCOCO. Fails if an option is renamed, or a verb is missing from the README."""
    command = get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("dit-sam ")]
    verbs = set()
    for line in lines:
        _, verb, *arguments = shlex.split(line, comments=True)
        verbs.add(verb)
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
    assert verbs == set(command.commands) - {"report"}


def test_what_others_do_is_said():
    """Fails if the README did not name what a user would take otherwise, and what that cannot do."""
    assert "SAM 3" in README and "CLIPSeg" in README and "relations" in README
