"""Progress is for terminals; the work is the same with and without one."""

import io

import rich.console

from tenfold.runs import track


def test_items_pass_through_in_order_and_a_log_stays_clean(capsys):
    assert list(track(range(5), "steps")) == [0, 1, 2, 3, 4]
    assert list(track(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_terminal_sees_count_and_description(monkeypatch):
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(rich.console, "Console", lambda **_: terminal)
    assert sum(track([1, 2, 3], "steps")) == 6
    assert "steps" in screen.getvalue()
    assert "3/3" in screen.getvalue()
