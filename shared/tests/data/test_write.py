"""`python -m tenfold.data.write`, and the mini data sets it writes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tenfold.data import formats, mini_sets, miniworld
from tenfold.data.miniworld import flags
from tenfold.data.write import Format, app
from tenfold.metrics.pope import SUBSETS

run = CliRunner().invoke


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", list(Format))
def test_every_format_is_written_whole_and_the_same_every_time(layout: str, tmp_path: Path) -> None:
    """Fails if a writer uses global random state, or the seed does not reach it."""
    arguments = ["--format", layout, "--count", "5", "--size", "16", "--output"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        result = run(app, [*arguments, str(tmp_path / name), "--seed", seed])
        assert result.exit_code == 0, result.output
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_folder_that_exists_is_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    """Fails if the folder is written into, or the error shows a traceback."""
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "tenfold.data.write", "--format", "pope", "--count", "2", "--output", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: already exists: {tmp_path}") and result.stderr.count("\n") == 1
    assert tree(tmp_path) == {"mine.txt": b"mine"}


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the data set is written in place instead of beside it."""

    def fail(*_: object) -> None:
        raise RuntimeError("disk")

    monkeypatch.setattr(formats, "write_vqav2", fail)
    assert run(app, ["--format", "vqav2", "--output", str(tmp_path / "data")]).exit_code == 1
    assert not list(tmp_path.iterdir())


def test_pope_subsets_are_balanced_and_ask_in_vain_for_what_their_name_says() -> None:
    """Fails if a "no" is about something that is there, or the subsets ask for the same."""
    subsets = mini_sets.pope(0, 40, 16)
    asked_in_vain = {}
    for subset in SUBSETS:
        samples = subsets[subset]
        assert len(samples) == 240 and sum(sample.label == "yes" for sample in samples) == 120
        asked_in_vain[subset] = [
            (int(sample.image_name[-8:-4]), *sample.text.split()[3:5]) for sample in samples if sample.label == "no"
        ]
    scenes = [flags.scene(0, index) for index in range(40)]
    for index, colour, shape in asked_in_vain["adversarial"]:
        looks = {(thing.colour, thing.shape) for thing in scenes[index].things}
        assert (colour, shape) not in looks
        assert (colour, shape) in miniworld.adversarial_pairs(scenes[index]) or len({shape for _, shape in looks}) == 1
    frequency = Counter(look for scene in scenes for look in {(t.colour, t.shape) for t in scene.things})
    mean = {
        subset: np.mean([frequency[colour, shape] for _, colour, shape in asked])
        for subset, asked in asked_in_vain.items()
    }
    assert mean["popular"] > mean["random"] + 1


def test_scienceqa_problems_cover_the_columns_of_the_table() -> None:
    """Fails if a column of the official table would stay empty, or the right answer keeps one place."""
    problems = list(mini_sets.scienceqa(0, 120, 16))
    assert {problem.subject for problem in problems} == {"natural science", "social science", "language science"}
    assert {problem.split for problem in problems} == {"train", "val", "test"}
    assert {problem.grade for problem in problems} == {f"grade{number}" for number in range(1, 13)}
    contexts = {(bool(problem.hint), problem.picture is not None) for problem in problems}
    assert contexts == {(False, True), (True, False), (False, False)}
    assert {problem.answer for problem in problems} == {0, 1, 2, 3}
    assert all(len(set(problem.choices)) == len(problem.choices) >= 2 for problem in problems)


def test_vqav2_has_ten_answers_and_official_answer_types() -> None:
    """Fails if a count is no number, or a presence no yes/no question."""
    samples = list(mini_sets.vqav2(0, 40, 16))
    assert len({sample.question_id for sample in samples}) == len(samples)
    for sample in samples:
        assert len(sample.annotation.answers) == 10
        kind = {"How": "number", "Is": "yes/no"}.get(sample.question.split()[0], "other")
        assert sample.annotation.answer_type == kind
