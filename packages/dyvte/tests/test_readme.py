"""What the README shows is what runs."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenfold.data import mini_host

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs_on_the_mini_host():
    """Fails if a public name or an argument that the README uses changes."""
    from dyvte.data.samples import mini_samples
    from dyvte.evaluation.model import open_gates

    code = "\n".join(blocks("python"))
    for written, here in (
        ('.to("cuda")', ""),
        ('dyvte.load_gates("runs/7b/gates")', "shipped"),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    code = code.replace('"llava-hf/llava-1.5-7b-hf"', repr(str(mini_host.path())))
    names = {"image": mini_samples(5, 1)[0].image(), "shipped": open_gates("shipped", "mini")}
    names["exit_layer"] = mini_host.config().text_config.num_hidden_layers - 1
    exec(compile(code, "README.md", "exec"), names)
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]


def local_lines():
    return [line for line in blocks("sh")[1].splitlines() if line.startswith("dyvte ")]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    """Those for the mini host, in their order, in one folder."""
    from dyvte.commands.app import app

    monkeypatch.chdir(tmp_path)
    for line in local_lines():
        outcome = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert outcome.exit_code == 0, f"{line}: {outcome.output} {outcome.exception}"
    assert (tmp_path / "runs" / "mini" / "gates" / "gates.safetensors").is_file()


def test_every_verb_is_in_the_readme_and_every_command_has_its_options():
    """Fails if a verb or an option is added, or renamed, and the README does not tell."""
    import typer

    from dyvte.commands.app import app

    command = typer.main.get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("dyvte ")]
    assert {line.split()[1] for line in lines} == set(command.commands) - {"report"}
    for line in lines:
        _, verb, *arguments = shlex.split(line, comments=True)
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
