"""The tables in the READMEs are generated, and stale ones are noticed."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tenfold import UserError
from tenfold.cli import main
from tenfold.ledger import PAPERS, Entry, collect, entries
from tenfold.ledger.readme import END, START, app, papers_block, replace_block

PACKAGE = Path(__file__).parent.parent / "fictional_package"
BEADS = replace(PAPERS[0], package="glass_beads", command="glass-beads", name="Glass Beads", claim="More | marbles")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m tenfold.ledger.readme ...`: (exit code, stderr)."""
    monkeypatch.setattr(entries, "PAPERS", (BEADS,))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["readme", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main(app)
        return stop.value.code or 0, capsys.readouterr().err

    return run


@pytest.fixture
def readme(tmp_path) -> Path:
    """The README of a package, with an empty place for the table."""
    shutil.copy(PACKAGE / "claims.yaml", tmp_path)
    path = tmp_path / "README.md"
    path.write_text(f"# Beads\n\n{START}\n{END}\n\nThe end.\n")
    return path


def test_a_package_s_readme_gets_its_claims(command, readme):
    assert command(readme) == (0, "")
    text = readme.read_text()
    assert text.startswith(f"# Beads\n\n{START}\nanalytic 1/1, parity 1/1, mini 0/1 (1 not reproduced), ")
    assert text.endswith(f"{END}\n\nThe end.\n")
    lines = text.splitlines()
    claim = "A box of the standard size holds 128 beads"
    assert f"| {claim} | Table 1 | analytic | 128 beads | 128 beads | reproduced |" in lines
    measured = "| speed | 1,204.5 beads/s | 1,190.2 beads/s | recorded (2031-02-03, NVIDIA H200) |"
    assert f"| Throughput on one GPU | Figure 5 {measured}" in lines
    assert "<details><summary>2 claims not run here: official weights and data</summary>" in lines
    command_of = "`glass-beads eval --config jar --weights released`"
    assert f"| Accuracy with released weights | Table 3 | 88 % | {command_of} |" in lines


def test_numbers_that_depend_on_the_machine_stay_out_of_the_readme(command, readme):
    """Fails if the live value of a mini or parity claim is written: the table would be stale elsewhere."""
    command(readme)
    assert "| mini | 0.52 | – | not reproduced |" in readme.read_text()


def test_a_stale_table_is_noticed_and_left_alone(command, readme):
    """Fails if --check writes, or exits 0 whatever it finds."""
    before = readme.read_text()
    code, err = command(readme, "--check")
    assert code == 1
    assert "its table is stale" in err
    assert readme.read_text() == before
    command(readme)
    assert command(readme, "--check") == (0, "")
    readme.write_text(readme.read_text().replace("holds 128 beads |", "holds 129 beads |"))
    assert command(readme, "--check")[0] == 1


def test_text_around_the_table_is_not_touched(command, readme):
    command(readme)
    readme.write_text(readme.read_text().replace("The end.", "The very end."))
    assert command(readme, "--check")[0] == 0


def test_the_root_readme_lists_ten_papers_and_calls_the_absent_ones_planned(command, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"{START}\n{END}\n")
    assert command(path) == (0, "")
    rows = [line for line in path.read_text().splitlines() if line.startswith("| **")]
    assert len(rows) == 10
    assert all(row.endswith("| planned |") for row in rows)
    assert "[arXiv 2409.10197](https://arxiv.org/abs/2409.10197)" in path.read_text()


def test_a_paper_that_is_here_shows_install_use_and_evidence(monkeypatch):
    monkeypatch.setattr(entries, "PAPERS", (BEADS,))
    row = papers_block([collect("glass_beads", None), Entry(PAPERS[3])]).splitlines()[2]
    assert "| `pip install ./packages/glass_beads` | `glass-beads demo` | More \\| marbles |" in row
    assert row.endswith("| analytic 1/1, parity 1/1, mini 0/1 (1 not reproduced), speed 1/1, full 0/2 |")


@pytest.mark.parametrize("text", ["", START, END, f"{END}{START}", f"{START}{START}{END}", f"{START}{END}{END}"])
def test_a_readme_without_exactly_one_place_is_refused(text):
    with pytest.raises(UserError, match="no place for the table"):
        replace_block(text, "x", Path("README.md"))


def test_a_missing_readme_is_one_line(command, tmp_path):
    code, err = command(tmp_path / "gone.md")
    assert code == 2
    assert err.startswith("error: no such file: ")
