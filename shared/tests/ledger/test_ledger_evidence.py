"""A claim is never shown as more than its evidence."""

import json
from pathlib import Path

import pytest
import yaml

from tenfold import UserError
from tenfold.ledger import PAPERS, Ledger, Outcome, claim_counts, evaluate, evaluate_package, failures, load_ledger
from tenfold.ledger.terminal import claims_table
from tenfold.ledger.text import difference, evidence, format_value, small, summary

CLAIMS = Path(__file__).parent.parent / "fictional_package" / "claims.yaml"


def ledger(**claim) -> Ledger:
    """A ledger of one claim."""
    base = {
        "id": "a",
        "statement": "A.",
        "source": "Table 1",
        "value": 10.0,
        "kind": "mini",
        "check": "check",
    }
    head = {"paper": "p", "title": "T", "venue": "V", "arxiv": "2409.10197", "repository": "r"}
    return Ledger.model_validate(head | {"claims": [base | claim]})


def result(outcome: Outcome | None, recorded: Path | None = None, **claim):
    checks = {} if outcome is None else {"check": lambda: outcome}
    return evaluate(ledger(**({"check": None} if outcome is None else {}), **claim), checks, recorded)[0]


def record(folder: Path, name: str = "r", **values) -> Path:
    base = {
        "claim": "a",
        "value": 9.5,
        "passed": True,
        "date": "2031-01-01",
        "commit": "c" * 40,
        "device": "X",
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(base | values))
    return folder


@pytest.mark.parametrize(
    ("outcome", "tolerance", "status"),
    [
        (Outcome(10.4, True), None, "reproduced"),
        (Outcome(10.4, True), 0.5, "reproduced"),
        (Outcome(10.6, True), 0.5, "not reproduced"),
        (Outcome(10.0, False), 0.5, "not reproduced"),
        (Outcome(10.4, None), 0.5, "reproduced"),
        (Outcome(10.6, None), 0.5, "not reproduced"),
        (Outcome(10.6, None), None, "recorded"),
        (Outcome("3 cases", True), 0.5, "reproduced"),
        (Outcome("3 cases", None), 0.5, "recorded"),
        (Outcome(None, True), 0.5, "reproduced"),
        (Outcome(None, None), 0.5, "not run here"),
        (None, 0.5, "not run here"),
    ],
)
def test_a_check_and_the_tolerance_decide_together(outcome, tolerance, status):
    """Fails if a check that passes outweighs a number beyond the claim's tolerance."""
    assert result(outcome, tolerance=tolerance).status == status


@pytest.mark.parametrize(
    ("passed", "value", "status"),
    [
        (True, 9.5, "recorded"),
        (None, 9.5, "recorded"),
        (False, 9.5, "not reproduced"),
        (True, 8.0, "not reproduced"),
    ],
)
def test_a_recorded_result_is_shown_as_recorded_or_as_not_reproduced(tmp_path, passed, value, status):
    """Fails if a measurement that nobody repeated here is shown as reproduced."""
    found = result(None, record(tmp_path / "results", passed=passed, value=value), tolerance=0.5)
    assert (found.status, found.value, found.date, found.device) == (status, value, "2031-01-01", "X")
    assert evidence(found) == "2031-01-01, cccccccccc, X"


@pytest.mark.parametrize(
    ("kind", "values", "status"),
    [
        ("mini", {"passed": None, "detail": "no verdict: the reference reads 97 %"}, "no verdict"),
        ("mini", {"passed": None, "verdict": "no verdict"}, "no verdict"),
        ("mini", {"passed": None, "detail": "+0.2 points; no verdict was declared"}, "recorded"),
        ("mini", {"passed": None, "detail": "equivalent: +0.1 points"}, "equivalent"),
        ("mini", {"passed": None, "verdict": "equivalent"}, "equivalent"),
        ("mini", {"passed": None, "detail": "as good as equivalent"}, "recorded"),
        ("mini", {"passed": False, "detail": "equivalent"}, "equivalent"),
        ("speed", {"passed": None, "detail": "equivalent"}, "recorded"),
        ("mini", {"passed": False, "detail": "no verdict elsewhere"}, "not reproduced"),
        ("speed", {"passed": None, "detail": "no verdict"}, "recorded"),
    ],
)
def test_a_gate_that_failed_is_no_verdict_and_a_difference_of_nothing_is_equivalent(tmp_path, kind, values, status):
    """Fails if what a miniature leaves undecided, or does not see, is shown as recorded or counted as evidence."""
    folder = record(tmp_path / "results", value=9.5, **values)
    (found,) = evaluate(ledger(check=None, kind=kind, tolerance=None), {}, folder)
    assert found.status == status
    live = Outcome(9.5, values["passed"], values.get("detail", values.get("verdict", "")))
    (found,) = evaluate(ledger(kind=kind, tolerance=None), {"check": lambda: live}, None)
    assert found.status == status
    said = summary(ledger(kind=kind), [found])
    assert said == f"{kind} {int(status == 'recorded')}/1" + ("" if status == "recorded" else f" (1 {status})")


def test_a_difference_of_nothing_is_0():
    """Fails if a reader meets 0e+00."""
    assert (small(0.0), small(3.14e-7)) == ("0", "3.1e-07")


def test_what_runs_now_outweighs_what_is_on_record(tmp_path):
    folder = record(tmp_path / "results", passed=True)
    assert result(Outcome(1.0, False), folder).status == "not reproduced"
    assert result(Outcome(1.0, False), folder).date is None
    assert result(Outcome(None, None, "needs a GPU"), folder).status == "recorded"


def test_the_newest_record_counts(tmp_path):
    record(tmp_path / "results", "a", value=1.0, date="2031-03-01")
    folder = record(tmp_path / "results", "b", value=2.0, date="2031-02-01")
    assert result(None, folder).value == 1.0


def test_a_check_that_lacks_something_from_outside_is_not_run(tmp_path):
    def check() -> Outcome:
        raise UserError("no weights", "weights/")

    found = evaluate(ledger(), {"check": check}, None)[0]
    assert (found.status, found.detail) == ("not run here", "no weights: weights/")


def test_a_check_that_crashes_is_a_bug():
    """Fails if evaluate swallows exceptions of checks."""
    with pytest.raises(ZeroDivisionError):
        evaluate(ledger(), {"check": lambda: 1 / 0}, None)


def test_a_check_that_several_claims_name_runs_once():
    calls = []

    def check() -> Outcome:
        calls.append(1)
        return Outcome(1.0, True)

    one = ledger().claims[0]
    two = ledger().model_copy(update={"claims": [one, one.model_copy(update={"id": "b"})]})
    assert [found.status for found in evaluate(two, {"check": check}, None)] == ["reproduced"] * 2
    assert len(calls) == 1


def test_a_check_that_waits_is_begun_first_and_asked_last():
    """Fails if METEOR, which loads for a dozen seconds, is waited for before other checks are run."""
    calls = []

    class Waits:
        def begin(self) -> None:
            calls.append("begin")

        def __call__(self) -> Outcome:
            calls.append("ask")
            return Outcome(1.0, True)

    def other() -> Outcome:
        calls.append("other")
        return Outcome(2.0, True)

    one = ledger(check="waits").claims[0]
    two = ledger().model_copy(update={"claims": [one, one.model_copy(update={"id": "b", "check": "other"})]})
    assert [found.value for found in evaluate(two, {"waits": Waits(), "other": other}, None)] == [1.0, 2.0]
    assert calls == ["begin", "other", "ask"]


def test_unknown_checks_and_records_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no check check: claim a of p \(expected one of: other\)"):
        evaluate(ledger(), {"other": lambda: Outcome(1, True)}, None)
    with pytest.raises(UserError, match=r"no claim b: .*r\.json"):
        result(None, record(tmp_path / "one", claim="b"))
    with pytest.raises(UserError, match=r"not a recorded result, date: .*r\.json"):
        result(None, record(tmp_path / "two", date="yesterday"))
    (tmp_path / "two" / "r.json").write_text("{")
    with pytest.raises(UserError, match="broken JSON"):
        result(None, tmp_path / "two")


def test_only_parity_and_analytic_claims_that_should_hold_fail():
    def failed(**claim) -> list[str]:
        book = ledger(**claim)
        return failures(book, evaluate(book, {"check": lambda: Outcome(1.0, False)}, None))

    assert failed(kind="parity") == failed(kind="analytic") == ["a"]
    assert failed(kind="mini") == failed(kind="speed") == []
    assert failed(kind="analytic", should_hold=False) == []


def test_the_fictional_ledger_has_one_of_each():
    import glass_beads.evidence.claims

    book, results = evaluate_package("glass_beads", glass_beads.evidence.claims.checks())
    assert [found.status for found in results] == [
        "reproduced",
        "reproduced",
        "not reproduced",
        "recorded",
        "not run here",
        "not run here",
    ]
    assert claim_counts(book, results)["full"] == {"not run here": 2}
    assert summary(book, results) == "analytic 1/1, parity 1/1, mini 0/1 (1 not reproduced), speed 1/1, full 0/2"


def edit(change: dict | None = None, claim: dict | None = None, drop: str | None = None) -> str:
    content = yaml.safe_load(CLAIMS.read_text())
    content["claims"][4] |= claim or {}
    if drop is not None:
        del content["claims"][4][drop]
    return yaml.safe_dump(content | (change or {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edit(change={"arxiv": "3101"}), "not a claims ledger, arxiv"),
        (edit(change={"surprise": 1}), "surprise"),
        (edit(change={"claims": []}), "claims: List should have at least 1 item"),
        (edit(claim={"kind": "guess"}), r"claims\.4\.kind"),
        (edit(claim={"tolerance": -1}), r"claims\.4\.tolerance"),
        (edit(claim={"value": [1]}), r"claims\.4\.value"),
        (edit(claim={"id": "a b"}), r"claims\.4\.id"),
        (edit(claim={"id": "beads-per-box"}), "claim beads-per-box is there twice"),
        (edit(claim={"comand": "x"}), r"claims\.4\.comand"),
        (edit(drop="source"), r"claims\.4\.source"),
        (edit(drop="command"), "a claim of kind full needs the exact command"),
        ("- a\n", "not a claims ledger"),
        ("claims: [\n", "broken YAML"),
    ],
)
def test_a_wrong_ledger_names_its_field(tmp_path, text, message):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_ledger(path)


def test_a_ledger_of_another_paper_is_refused(tmp_path, monkeypatch):
    module = tmp_path / "site" / "boxed_beads"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    (module / "claims.yaml").write_text(CLAIMS.read_text())
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(UserError, match="claims of glass_beads"):
        evaluate_package("boxed_beads", {})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "%", "–"),
        (3817152184320, "MACs", "3,817,152,184,320 MACs"),
        (4.4, "TFLOPs", "4.4 TFLOPs"),
        (-51.1, "%", "-51.1 %"),
        (6.437123456, None, "6.4371"),
        (0.0, None, "0"),
        (2.3e-7, None, "2.3e-07"),
        (3.8e12, None, "3.8e+12"),
        ("about 5", "min", "about 5 min"),
        ("3 cases", None, "3 cases"),
    ],
)
def test_numbers_read_well(value, unit, text):
    assert format_value(value, unit) == text


def test_there_are_ten_papers_each_with_three_sentences():
    assert len(PAPERS) == 10
    assert len({paper.package for paper in PAPERS}) == len({paper.arxiv for paper in PAPERS}) == 10
    for paper in PAPERS:
        assert paper.command == paper.package.replace("_", "-")
        assert len(paper.method) == 3
        assert all(sentence.endswith(".") for sentence in paper.method)
        assert paper.repository.startswith("https://github.com/")


@pytest.mark.parametrize(
    ("ours", "paper", "shown"),
    [
        (9.5, 10.0, "-0.5"),
        (13.572, 13.4, "+0.172"),
        (1024, 1024, "0"),
        (0.1 + 0.2, 0.3, "0"),
        (None, 10.0, ""),
        (9.5, None, ""),
        ("9 to 10", 10.0, ""),
    ],
)
def test_the_difference_to_the_paper_is_shown_where_both_are_numbers(ours, paper, shown):
    """Fails if the sign is turned, or a number is made of words."""
    book = ledger(value=paper)
    results = evaluate(book, {"check": lambda: Outcome(ours, True)}, None)
    assert difference(book.claims[0], results[0]) == shown
    table = claims_table(book, results)
    column = next(one for one in table.columns if one.header == "difference")
    assert [str(cell) for cell in column.cells] == [shown]


def test_an_installation_without_golden_data_says_so():
    """Fails if a wheel shows parity 0 of 1 without a word, or a clone says that something is missing."""
    book = ledger(kind="parity", value=None)
    for outcome, said in ((Outcome(None, None, "no data"), True), (Outcome("3 cases", True), False)):
        table = claims_table(book, evaluate(book, {"check": lambda outcome=outcome: outcome}, None))
        assert (
            "1 claims of parity were not checked: their golden data are in the source tree" in str(table.caption)
        ) is said
