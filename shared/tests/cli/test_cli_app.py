"""The common verbs, and errors in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tenfold.runs import RunRecord
from tenfold.runs.provenance import Source

CITATION = Path(__file__).parent.parent / "fictional_package" / "CITATION.cff"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `glass-beads ...` as its console script does: (exit code, stdout, stderr)."""
    from glass_beads.commands.app import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glass-beads", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_a_user_error_is_one_line_on_stderr_and_exit_code_2(command):
    """Fails if main lets UserError through as a traceback, or prints it to stdout."""
    assert command("spill", "user") == (2, "", "error: the box is open: lid (expected a closed box)\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    from glass_beads.commands.app import main

    monkeypatch.setattr(sys, "argv", ["glass-beads", "spill", "bug"])
    with pytest.raises(KeyError, match="a bug"):
        main()


def test_an_unknown_option_is_a_usage_error(command):
    code, out, err = command("count", "--nope")
    assert (code, out) == (2, "")
    assert "--nope" in err


@pytest.mark.parametrize("verb", ["", "claims", "cite", "verify", "report", "count"])
def test_every_help_has_an_example(command, verb):
    code, out, _ = command(*verb.split(), "--help")
    assert code == 0
    assert f"Example: glass-beads {verb}".strip() in out


def test_a_verb_without_meaning_says_what_to_use(command):
    expected = "error: glass-beads has no verb train, use glass-beads count --config mini [--seed N]\n"
    assert command("train") == (2, "", expected)
    assert command("train", "--config", "mini", "more") == (2, "", expected)
    assert "Use glass-beads count --config mini [--seed N]" in command("--help")[1]


def test_version_is_the_package_s(command):
    assert command("--version") == (0, "glass-beads 1.2.0\n", "")


def test_the_help_of_a_real_paper_names_it(monkeypatch, capsys):
    from tenfold.cli import Package, build_app, main

    package = Package(name="fitprune", module="fitprune", distribution="fitprune")
    monkeypatch.setattr(sys, "argv", ["fitprune", "--help"])
    with pytest.raises(SystemExit):
        main(build_app(package, dict, {}))
    assert "arXiv 2409.10197" in capsys.readouterr().out


def test_claims_shows_the_paper_s_numbers_beside_ours(command):
    code, out, err = command("claims")
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if "Throughput on one GPU" in line)
    assert re.search(r"1,204\.5 beads/s.*1,190\.2 beads/s.*recorded", row)
    assert "mini 0/1 (1 not reproduced)" in out


def test_claims_are_shown_on_an_output_of_ascii():
    """Fails if a table's border, or a letter of the ledger, ends in a UnicodeEncodeError."""
    source = Path(__file__).parent.parent / "fictional_package" / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from glass_beads.commands.app import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, "claims", "--all"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0 and b"Throughput on one GPU" in done.stdout, done.stderr
    assert done.stdout.isascii() and b"+-" in done.stdout


def test_claims_that_need_official_weights_are_counted_and_listed_when_asked(command):
    """Fails if they are dropped without a word: the table would look complete."""
    out = command("claims")[1]
    assert "JAR-Bench" not in out
    assert "2 claims that need official weights and data are not listed (--all)." in out
    out = command("claims", "--all")[1]
    assert "Accuracy on JAR-Bench <test>, 60 % & above" in " ".join(out.split())
    assert "not listed" not in out


def test_claims_fails_when_a_claim_that_should_hold_does_not(command, monkeypatch):
    """Fails if the exit code ignores the results."""
    import glass_beads.evidence.claims

    monkeypatch.setattr(glass_beads.evidence.claims, "BEADS", 127)
    code, out, err = command("claims")
    assert code == 1
    assert err == "does not hold: beads-per-box\n"
    assert "127 beads" in out


def test_claims_writes_its_table_and_its_record(command, tmp_path):
    code, *_ = command("claims", "--json", tmp_path / "claims.json", "--output", tmp_path / "run")
    assert code == 0
    table = json.loads((tmp_path / "claims.json").read_text())
    status = {row["claim"]: row["status"] for row in table["results"]}
    assert status["beads-per-box"] == "reproduced"
    assert status["accuracy-jar"] == "not run here"
    record = RunRecord.load(tmp_path / "run")
    assert record.verb == "claims"
    assert record.metrics["mini"] == {"not reproduced": 1}
    assert list(record.outputs) == ["claims.json"]


def test_cite_prints_paper_and_software(command, monkeypatch):
    monkeypatch.setattr("tenfold.cli.app.package_source", lambda package: Source("c" * 40, True))
    code, out, _ = command("cite")
    assert code == 0
    paper, software = out.split("\n\n")
    assert paper == (
        "@inproceedings{murmel2031glass_beads,\n"
        "  author = {Murmel, Ada and de la Bille, Jean},\n"
        "  title = {{Glass Beads: Counting Marbles by Their Shadows \\& More}},\n"
        "  booktitle = {Proceedings of Fictional Optics},\n"
        "  year = {2031},\n"
        "  volume = {7},\n"
        "  number = {2},\n"
        "  pages = {11--19},\n"
        "  doi = {10.0000/glass_beads},\n"
        "  eprint = {3101.00001},\n"
        "  archivePrefix = {arXiv}\n"
        "}"
    )
    assert software.startswith("@software{glass_beads_1_2_0,\n  author = {{The glass\\_beads contributors}},")
    assert f"note = {{commit {'c' * 40} with local changes}}" in software


def test_cite_pins_a_run(command, tmp_path):
    """Fails if the entry leaves out the config's or the data's fingerprint."""
    command("count", "--seed", 5, "--output", tmp_path / "run")
    record = RunRecord.load(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "run.json"):
        code, out, _ = command("cite", path)
        entry = out.split("\n\n")[2]
        assert code == 0
        assert entry.startswith(f"@misc{{{record.id},")
        assert "seed 5" in entry
        assert f"config {record.config_sha256}" in entry
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content |= {"data": {"jar_bench": "sha256:" + "0" * 64}, "commit": "d" * 40, "dirty": False}
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    assert f"commit {'d' * 40}, seed 5" in command("cite", tmp_path / "run")[1]
    assert f"data jar\\_bench sha256:{'0' * 64}" in command("cite", tmp_path / "run")[1]


def test_cite_and_verify_refuse_what_is_no_run_of_this_package(command, tmp_path):
    command("count", "--output", tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(content | {"package": "fitprune"}))
    for verb in ("cite", "verify"):
        code, out, err = command(verb, tmp_path / "other.json")
        assert (code, out) == (2, "")
        assert err.startswith("error: a run of fitprune: ")
        code, out, err = command(verb, tmp_path / "gone")
        assert (code, out) == (2, "")
        assert err.startswith("error: no such file: ")


@pytest.mark.parametrize("missing", ["title", "authors", "preferred-citation"])
def test_an_incomplete_citation_file_names_what_is_missing(tmp_path, missing):
    from tenfold import UserError
    from tenfold.cli.bibtex import load_citation

    content = yaml.safe_load(CITATION.read_text())
    del content[missing]
    path = tmp_path / "CITATION.cff"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=f"no {missing}"):
        load_citation(path)


def test_an_article_and_a_preprint_become_their_own_entry_types():
    from tenfold.cli.bibtex import paper_bibtex

    authors = [{"family-names": "Ågren", "given-names": "B."}]
    article = {"type": "article", "title": "T", "authors": authors, "year": 2030, "journal": "J", "start": 7}
    assert paper_bibtex({"preferred-citation": article}, "p").startswith("@article{gren2030p,")
    assert "pages = {7}" in paper_bibtex({"preferred-citation": article}, "p")
    generic = {"type": "generic", "title": "T", "authors": authors, "date-published": "2029-01-02"}
    assert paper_bibtex({"preferred-citation": generic}, "p").startswith("@misc{gren2029p,")


def test_claims_train_says_what_it_costs_and_writes_results_that_claims_can_show(command, tmp_path):
    """Fails if a result lacks what a recorded one needs: claim, value, date, commit, device."""
    from tenfold.ledger.evidence import Recorded

    code, out, err = command("claims", "--train", "--output", tmp_path / "trained")
    assert (code, err) == (0, "")
    assert out.startswith("blows glass with 2 seeds")
    (file,) = (tmp_path / "trained" / "results").iterdir()
    result = Recorded.model_validate_json(file.read_text())
    assert file.stem == result.claim == "shadows-in-rain"
    assert result.value == pytest.approx(sum(result.means) / 2) and result.device
    record = RunRecord.load(tmp_path / "trained")
    assert record.id == result.run_id and "results/shadows-in-rain.json" in record.outputs


def test_claims_train_needs_a_folder_and_something_to_train(command, monkeypatch, capsys):
    assert command("claims", "--train")[::2] == (
        2,
        "error: no folder for checkpoints and results: --train (expected --output FOLDER)\n",
    )
    from tenfold.cli import Package, build_app, main

    package = Package(name="fitprune", module="fitprune", distribution="fitprune")
    monkeypatch.setattr(sys, "argv", ["fitprune", "claims", "--train", "--output", "nowhere"])
    with pytest.raises(SystemExit):
        main(build_app(package, dict, {}))
    assert "fitprune has nothing to train for its claims" in capsys.readouterr().err
