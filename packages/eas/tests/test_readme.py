"""The README: every command in it is one that the command line takes, and the table is the ledger's."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from eas.commands.app import app
from tenfold.data import mini_host
from tenfold.data.miniworld import flags
from tenfold.testing.commands import run

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


def test_every_verb_is_in_the_readme():
    """Fails if a verb is added, or renamed, and the README does not tell."""
    told = {command.split()[1] for command in COMMANDS}
    assert set(typer.main.get_command(app).commands) - told == {"report"}


# In their order, in one folder, short where they would train or search for minutes.
LOCAL = ("eas demo", "eas train --config mini --output", "eas search --config mini", "eas tune --from runs/search/",
         "eas sensitivity", "eas eval --config mini", "eas cite", "eas verify")  # fmt: skip
SHORTER = {
    "train": ["search.steps=4", "tune.steps=3", "search.idle=1", "data.samples=16"],
    "search": ["search.steps=4", "search.idle=1", "data.samples=16"],
    "tune": ["tune.steps=3", "data.samples=16"],
    "eval": ["limit=8"],
}


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path):
    """Fails if a command that needs nothing but the package ends with an error, or does not write what it names."""
    from eas.commands.app import main

    needs = ("--dry-run", "data/")  # a plan only; a data set and official weights
    local = [one for one in COMMANDS if one.startswith(LOCAL) and not any(part in one for part in needs)]
    assert len(local) >= len(LOCAL)
    for command in local:
        words = shlex.split(command)[1:]
        more = [part for change in SHORTER.get(words[0], ()) for part in ("--set", change)]
        done = run(main, *words, *more, where=tmp_path)
        assert done.code == 0, (command, done.err, done.out[-500:])
    for made in ("search/search.json", "tune/adapters/eas.json", "mini/adapters/README.md", "eval/predictions.jsonl"):
        assert (tmp_path / "runs" / made).is_file(), made


def test_the_python_of_the_readme_runs_on_the_mini_host(tmp_path, monkeypatch):
    """Fails if a public name or an argument that the README uses changes."""
    import torch

    from eas.miniature.shipped import adapters_path
    from eas.result import SearchResult
    from eas.search import RULES, Search

    monkeypatch.chdir(tmp_path)
    found = Search(RULES["llava"], sites=mini_host.config().get_text_config().num_hidden_layers, removed=2)
    (tmp_path / "runs" / "search").mkdir(parents=True)
    SearchResult.of(found, seed=0).save("runs/search/search.json")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    for written, here in (
        ('"llava-hf/llava-1.5-7b-hf", dtype="bfloat16"', repr(str(mini_host.path()))),
        ('"runs/aid20/adapters"', repr(str(adapters_path()))),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    processor = mini_host.load()[1]
    prompt = mini_host.prompt("What color is the circle?")
    inputs = processor(images=[flags.render(flags.scene(0, 0))], text=[prompt], return_tensors="pt")
    names = {"inputs": dict(inputs) | {"max_new_tokens": 2}, "torch": torch}
    exec(compile(code, "README.md", "exec"), names)
    assert names["plan"].pia_rank == 128 and len(names["optimizer"].param_groups[0]["params"]) == 10 * 7 + 2 * 10


def test_the_readme_shows_the_ledger():
    """Fails if the table is missing or stale: `eas claims --all` and it must name the same claims."""
    from tenfold.cli import package_file
    from tenfold.ledger import load_ledger

    for claim in load_ledger(package_file("eas", "claims.yaml")).claims:
        assert claim.statement in README.replace("\\|", "|"), claim.id
