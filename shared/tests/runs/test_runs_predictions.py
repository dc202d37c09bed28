"""Predictions that survive a kill, and that several ranks make together."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tenfold import UserError
from tenfold.runs import read_jsonl
from tenfold.runs.predictions import PredictionLog

IDS = [7, 3, 11, 5, "a"]


def test_what_was_appended_is_done_after_reopening(tmp_path):
    """Fails if ids change their type on the disk (7 and "7" are two images), or are forgotten."""
    log = PredictionLog(tmp_path, {"model": "m"})
    assert log.todo(IDS) == IDS
    log.append(3, "a cat")
    log.extend([(7, {"answer": [1, 2.5]}), ("a", None)])
    again = PredictionLog(tmp_path, {"model": "m"})
    assert again.done == {3, 7, "a"} and again.todo([*IDS, "7"]) == [11, 5, "7"]
    assert again.merged([7, "a", 3]) == {7: {"answer": [1, 2.5]}, "a": None, 3: "a cat"}


def test_ranks_share_the_ids_and_merge(tmp_path):
    """Fails if two ranks get the same id, if one is left out, or if the merge keeps the order of files."""
    logs = [PredictionLog(tmp_path, {}, rank, 3) for rank in range(3)]
    shares = [log.todo(IDS) for log in logs]
    assert shares == [[7, 5], [3, "a"], [11]]
    for log, share in zip(logs, shares, strict=True):
        log.extend((one, f"by {log.rank}") for one in share)
    assert list(logs[0].merged(IDS).items()) == [(7, "by 0"), (3, "by 1"), (11, "by 2"), (5, "by 0"), ("a", "by 1")]


def test_another_number_of_ranks_goes_on(tmp_path):
    PredictionLog(tmp_path, {}, 1, 2).append(3, "x")
    assert PredictionLog(tmp_path, {}).todo(IDS) == [7, 11, 5, "a"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"model": "other", "split": "test"}, "another model: m: .*expected other"),
        ({"model": "m"}, "another split: test: .*expected nothing"),
        ({"model": "m", "split": "test", "beams": 3}, "another beams: nothing: .*expected 3"),
    ],
)
def test_predictions_of_something_else_are_refused(tmp_path, header, message):
    """Fails if the header is not compared: two models' predictions would be scored as one."""
    PredictionLog(tmp_path, {"model": "m", "split": "test"}).append(1, "x")
    with pytest.raises(UserError, match=message):
        PredictionLog(tmp_path, header)


def test_missing_predictions_are_named(tmp_path):
    log = PredictionLog(tmp_path, {})
    log.append(7, "x")
    with pytest.raises(UserError, match="4 predictions missing, first 3"):
        log.merged(IDS)


def test_two_answers_to_one_question_are_refused(tmp_path):
    PredictionLog(tmp_path, {}, 0, 2).append(1, "x")
    PredictionLog(tmp_path, {}, 1, 2).append(1, "y")
    with pytest.raises(UserError, match="two predictions of 1"):
        PredictionLog(tmp_path, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"predictions": [[1]]}\n', "not a record of predictions"),
        ('{"id": 1}\n', "not a record of predictions"),
        ('garbage\n{"predictions": []}\n', "broken JSON"),
        ('{"predictions": [[1, "\\ud800"]]}\n{"predictions": []}\n', "half a character"),
        ('{"predictions": [[1, NaN]]}\n{"predictions": []}\n', "NaN is no number of JSON"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, content, message):
    """Fails if half a character, or no number, is taken as an answer."""
    PredictionLog(tmp_path, {})
    (tmp_path / "part-0000.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        PredictionLog(tmp_path, {})


def test_predictions_without_their_header_are_refused(tmp_path):
    (tmp_path / "part-0000.jsonl").write_text('{"predictions": [[1, "x"]]}\n')
    with pytest.raises(UserError, match="without a header"):
        PredictionLog(tmp_path, {})


APPENDING = """
import itertools, sys
from tenfold.runs.predictions import PredictionLog
log = PredictionLog(sys.argv[1], {})
for number in itertools.count():
    log.append(number, "x" * 5000)
"""


def test_a_kill_loses_at_most_the_last_line(tmp_path):
    """SIGKILL while appending. Fails if a torn line makes the log unreadable or glues to the next one."""
    process = subprocess.Popen([sys.executable, "-c", APPENDING, str(tmp_path)])
    part = tmp_path / "part-0000.jsonl"
    while not (part.exists() and part.stat().st_size > 100_000) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    os.truncate(part, part.stat().st_size - 7)  # as if the kill had come inside the write
    log = PredictionLog(tmp_path, {})
    assert log.done == set(range(len(log.done))) and len(log.done) >= 10
    log.append("next", "y")
    assert len(read_jsonl(part)) == len(log.done) + 1
