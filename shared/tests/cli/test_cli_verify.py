"""Running a run again: bit for bit in the same environment, within tolerances in another."""

import json
import math

import pytest
from glass_beads.commands.app import Settings, count, count_again

from tenfold import UserError
from tenfold.cli.verify import verify_run
from tenfold.runs import RunRecord, fingerprint, run

VERIFIERS = {"count": count_again}


@pytest.fixture
def record(tmp_path) -> RunRecord:
    return count(Settings(), 3, tmp_path / "run")


def changed(record: RunRecord, **values) -> RunRecord:
    return RunRecord.model_validate(json.loads(record.model_dump_json()) | values)


def verdicts(verification) -> dict:
    return {row.name: row.verdict for row in verification.comparisons}


def test_the_same_environment_gives_the_same_bits(record):
    verification = verify_run(record, VERIFIERS, {})
    assert verification.changes == []
    assert verdicts(verification) == {"beads": "equal", "mean": "equal", "sizes.txt": "equal"}
    assert verification.holds


def test_another_number_differs_however_small(record):
    """Fails if metrics are compared within the tolerance although nothing in the environment changed."""
    mean = math.nextafter(record.metrics["mean"], 1)
    verification = verify_run(changed(record, metrics={"beads": 8, "mean": mean}), VERIFIERS, {"mean": 0.25})
    assert verdicts(verification)["mean"] == "differs"
    assert not verification.holds


def test_another_file_differs(record):
    verification = verify_run(changed(record, outputs={"sizes.txt": fingerprint({})}), VERIFIERS, {})
    assert verdicts(verification)["sizes.txt"] == "differs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.1.0"}, "glass-beads 1.1.0 -> 1.2.0"),
        ({"commit": "a" * 40, "dirty": False}, f"commit {'a' * 40} -> None"),
        ({"libraries": {"numpy": "1.0"}}, "numpy 1.0 -> "),
        ({"hardware": {"device": "cuda", "gpu": "X"}}, "gpu X -> None"),
        ({"hardware": {"threads": 999}}, "threads 999 -> "),
        ({"hardware": {"cpu": "Abacus"}}, "cpu Abacus -> "),
    ],
)
def test_another_environment_is_compared_within_tolerances(record, change, words):
    """Fails if a difference in versions, device or threads goes unnoticed."""
    for key in ("libraries", "hardware"):
        if key in change:
            change = change | {key: record.model_dump(mode="json")[key] | change[key]}
    metrics = {"beads": 8, "mean": record.metrics["mean"] + 0.2}
    there = changed(record, metrics=metrics, outputs={"sizes.txt": fingerprint({})}, **change)
    verification = verify_run(there, VERIFIERS, {"me*": 0.25})
    assert any(words in line for line in verification.changes)
    assert verdicts(verification) == {
        "beads": "equal",
        "mean": "within tolerance",
        "sizes.txt": "not compared",
    }
    assert not verify_run(there, VERIFIERS, {"mean": 0.1}).holds
    assert not verify_run(there, VERIFIERS, {}).holds


def test_a_metric_or_file_that_is_gone_differs(record):
    metrics = record.metrics | {"more": 1}
    verification = verify_run(changed(record, metrics=metrics, version="1.1.0"), VERIFIERS, {"more": math.inf})
    assert verdicts(verification)["more"] == "differs"
    outputs = record.outputs | {"more.txt": fingerprint({})}
    verification = verify_run(changed(record, outputs=outputs, version="1.1.0"), VERIFIERS, {})
    assert verdicts(verification)["more.txt"] == "differs"


def test_a_measurement_is_never_compared(record):
    metrics = {"mean": 100.0, "beads": 8}
    verification = verify_run(changed(record, metrics=metrics), VERIFIERS, {"mean": math.inf})
    assert verdicts(verification)["mean"] == "not compared"
    assert verification.holds


def test_what_cannot_be_run_again_is_said_in_one_line(record):
    with pytest.raises(UserError, match=r"config does not match config_sha256"):
        verify_run(changed(record, config={"beads": 9}), VERIFIERS, {})
    with pytest.raises(UserError, match=r"cannot run count again: .* \(expected one of these verbs: fit\)"):
        verify_run(record, {"fit": count_again}, {})


def test_what_a_forged_record_says_is_shown_as_it_is(record, tmp_path, monkeypatch, capsys):
    """A name with markup, a machine with an escape sequence. Fails if the table reads the one, which ends in a
    traceback, or the terminal the other."""
    from glass_beads.commands.app import main

    content = record.model_dump(mode="json")
    content["metrics"]["[/bold][red]x"] = 1
    content["hardware"]["cpu"] = "Abacus\x1b[2J"
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["glass-beads", "verify", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr().out
    assert stop.value.code == 1 and "[/bold][red]x" in shown and "Abacus\\x1b[2J" in shown


def test_other_data_than_the_recorded_is_named(tmp_path):
    """Fails if a run on other data is compared as if it were the same."""
    data = tmp_path / "jar"
    data.write_text("1 2 3")

    def count_jar(_: RunRecord | None, folder) -> dict:
        with run("glass_beads", "jar", config={}, seed=0, output=folder, data={"jar": data}) as current:
            current.metrics["sum"] = sum(map(int, data.read_text().split()))
        return current.metrics

    count_jar(None, tmp_path / "run")
    record = RunRecord.load(tmp_path / "run")
    assert verify_run(record, {"jar": count_jar}, {}).holds
    data.write_text("1 2 4")
    with pytest.raises(UserError, match="the data set jar is not the recorded one"):
        verify_run(record, {"jar": count_jar}, {})
    data.unlink()
    with pytest.raises(UserError, match="no such file"):
        verify_run(record, {"jar": count_jar}, {})


def test_the_verb_says_it_by_its_exit_code(tmp_path, monkeypatch, capsys):
    from glass_beads.commands.app import main

    def command(*arguments) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["glass-beads", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capsys.readouterr().out

    command("count", "--output", tmp_path / "run")
    code, out = command("verify", tmp_path / "run")
    assert code == 0
    assert "compared bit for bit" in out
    assert "It holds." in out
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content["metrics"]["mean"] += 1e-9
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    code, out = command("verify", tmp_path / "run")
    assert code == 1
    assert "It differs." in out
    command("claims", "--output", tmp_path / "claims")
    assert command("verify", tmp_path / "claims")[0] == 0
