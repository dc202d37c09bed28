"""Pickles from elsewhere: nothing runs, nothing takes more than its size warrants, and plain values come out right."""

import collections
import io
import os
import pickle
import time
from collections import Counter, OrderedDict, defaultdict

import pytest

from tenfold import UserError
from tenfold.runs.unpickling import MAX_DEPTH, Skipped, unpickle

REFS = [
    {
        "ref_id": number, "ann_id": 2**40 + number, "split": "train", "file_name": f"COCO_train2014_{number}.jpg",
        "sentences": [{"tokens": ["left", "man"], "raw": "Left man", "sent_id": -number, "score": 0.5, "none": None}],
        "sent_ids": [1, 2, 300], "box": (1, 2.5, True), "set": {1, 2}, "frozen": frozenset({"a"}), "bytes": b"\xff",
        "long": 3**500,
    }
    for number in range(3)
]  # fmt: skip


class Command:
    """What a malicious file does: call something when it is read."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_need_no_names(protocol):
    """Fails if an opcode of some protocol is read as another: then a good file is refused, or a bad one passes."""
    # Protocols below 3 write bytes, and below 4 sets, as calls.
    plain = [{key: value for key, value in one.items() if protocol >= 4 or key not in ("set", "frozen", "bytes")}
             for one in REFS]  # fmt: skip
    assert unpickle(pickle.dumps(plain, protocol), "refs.p") == plain


def test_shared_and_recursive_values_are_read():
    """Fails if a memo is refused as such."""
    shared = ("a", "b")
    ring = [shared, {"again": shared}]
    ring.append(ring)
    read = unpickle(pickle.dumps(ring), "x.p")
    assert read[2] is read and read[0] is read[1]["again"]
    assert unpickle(pickle.dumps([shared] * 5000), "x.p") == [shared] * 5000


@pytest.mark.parametrize("name", ["system", "getcwd", "_exit"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_command_is_refused_by_its_name_and_not_run(name, protocol, tmp_path):
    """Fails if `find_class` imports what a pickle names."""
    witness = tmp_path / "witness"
    arguments = {"system": (f"touch {witness}",), "getcwd": (), "_exit": (3,)}[name]
    data = pickle.dumps({"a": Command(getattr(os, name), *arguments)}, protocol)
    with pytest.raises(UserError, match=rf"refused as refs \(names (posix|nt|os)\.{name}\): x\.p .expected") as error:
        unpickle(data, "x.p", what="refs")
    assert "\n" not in str(error.value) and not witness.exists()


@pytest.mark.parametrize("name", ["Counter.__init__.__globals__", "Counter.fromkeys", "abc.sys"])
def test_names_below_an_allowed_one_are_refused(name):
    """Protocol 4 lets a pickle walk along attributes. Fails if only the first part of a name is checked."""
    written = b"\x80\x04" + b"\x8c\x0bcollections" + bytes([0x8C, len(name)]) + name.encode() + b"\x93."
    with pytest.raises(UserError, match=r"refused as a pickle \(names collections"):
        unpickle(written, "x.p", {("collections", "Counter"): type("Counter", (Counter,), {})})


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    """Fails if an escape sequence in a class name is printed."""
    with pytest.raises(UserError) as error:
        unpickle(b"cos\x1b[2J\nsys\x07tem\n.", "x.p")
    assert str(error.value).isprintable() and "os?[2J.sys?tem" in str(error.value)
    with pytest.raises(UserError) as error:
        unpickle(b"c" + b"a" * 10_000 + b"\nb\n.", "x.p")
    assert len(str(error.value)) < 400


def entangled(depth, end=b"K\x01s."):
    """A dictionary whose key is pairs of pairs, `depth` levels of them: 2 ** depth leaves."""
    levels = b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(depth))
    return b"\x80\x03})" + levels + end


@pytest.mark.parametrize(
    "data",
    [
        entangled(60),
        entangled(60, b"K\x01u."),
        b"\x80\x04\x8f(" + entangled(60, b"")[3:] + b"\x90.",
        b"\x80\x04(" + entangled(60, b"")[3:] + b"\x91.",
        # The same, hashed many times.
        b"\x80\x03}" + entangled(19, b"")[4:] + b"q\xff0(" + b"h\xffK\x01" * 9000 + b"u.",
    ],
    ids=["key", "keys", "set", "frozen set", "often"],
)
def test_shared_tuples_are_refused_in_no_time(data):
    """A few hundred bytes that take years to hash. Fails if a shared part counts once."""
    started = time.monotonic()
    with pytest.raises(UserError, match="refused as a pickle"):
        unpickle(data, "x.p")
    assert time.monotonic() - started < 1


def test_deep_values_are_refused():
    """Hashing a hundred thousand nested tuples ends the process. Fails if depth is counted by lists only."""
    for opening, closing in ((b")", b"\x85"), (b"]", b"")):
        data = b"\x80\x03" + (opening + closing * 100_000 if closing else opening * 100_000 + b"a" * 99_999) + b"."
        with pytest.raises(UserError, match=f"nests deeper than {MAX_DEPTH}"):
            unpickle(data, "x.p")
    assert unpickle(b"\x80\x03)" + b"\x85" * (MAX_DEPTH - 1) + b".", "x.p")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x03Nr\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"Np2000000000\n.",
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray of a tebibyte
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x03T\xff\xff\xff\xff.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x05\x97.",
        b"Pabc\n.",
        b"\x80\x03K\x01Q.",
        b"h\x05.",
        b"K\x01\x86.",
        b"(.",
        b"t.",
        b"0.",
        b"",
        b"<!doctype html>\n",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_what_is_no_plain_pickle_is_refused_in_one_line(data):
    """Fails if memory is taken for what a file only announces, or another exception comes through."""
    started = time.monotonic()
    with pytest.raises(UserError, match="refused as a pickle") as error:
        unpickle(data, "x.p")
    assert time.monotonic() - started < 1 and str(error.value).isprintable()


@pytest.mark.parametrize("kept", [0, 3, 40, -1])
def test_torn_pickles_are_refused(kept):
    with pytest.raises(UserError, match="refused as"):
        unpickle(pickle.dumps(REFS)[:kept], "x.p")


def test_texts_of_python_2_are_latin_1_on_demand():
    """Fails if the accents of RefCOCO's sentences are lost, or taken for Latin-1 without being asked."""
    for data in (b"(dp0\nS'raw'\np1\nS'caf\\xe9'\np2\ns.", b"}U\x03rawU\x04caf\xe9s."):
        assert unpickle(data, "refs.p", latin1=True) == {"raw": "café"}
        with pytest.raises(UserError, match="refused as"):
            unpickle(data, "refs.p")


def test_a_pickle_cannot_change_a_class_of_the_program():
    """BUILD sets attributes, of a class too: what is handed in is the reader's own."""
    state = b"N}X\x0b\x00\x00\x00most_commonX\x04\x00\x00\x00gones\x86b."
    unpickle(b"\x80\x03ccollections\nCounter\n" + state, "x.p", {("collections", "Counter"): type("C", (Counter,), {})})
    assert callable(collections.Counter.most_common)


def test_allowed_classes_are_made_and_filled():
    allowed = {("collections", "OrderedDict"): OrderedDict, ("collections", "defaultdict"): defaultdict}
    made = OrderedDict(a=1, b=[2])
    assert unpickle(pickle.dumps(made), "x.p", allowed) == made
    with pytest.raises(UserError, match=r"names builtins\.list"):
        unpickle(pickle.dumps(defaultdict(list)), "x.p", allowed)


class Settings:
    """An object of a class that a reader does not know."""

    def __init__(self):
        self.rate = 1


def test_unknown_classes_are_left_out_and_named_on_demand(tmp_path):
    """Fails if an unknown class is imported, or what stands beside it is lost."""
    skipped: list[str] = []
    witness = tmp_path / "witness"
    content = {"weights": [1, 2], "config": Settings(), "run": Command(os.system, f"touch {witness}")}
    read = unpickle(pickle.dumps(content), "x.ckpt", skipped=skipped)
    assert read["weights"] == [1, 2] and isinstance(read["config"], Skipped) and isinstance(read["run"], Skipped)
    assert [name.rpartition(".")[2] for name in skipped] == ["Settings", "system"] and not witness.exists()


def test_persistent_ids_are_the_callers():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", value.nbytes) if isinstance(value, memoryview) else None

    written = io.BytesIO()
    Pickler(written).dump({"w": memoryview(b"1234")})
    assert unpickle(written.getvalue(), "x.pt", persistent=lambda found: found) == {"w": ("storage", 4)}
    with pytest.raises(UserError, match="holds a persistent id"):
        unpickle(written.getvalue(), "x.pt")


def test_large_plain_files_are_read_in_reasonable_time():
    """A hundred thousand sentences. Fails if reading takes more than some microseconds an opcode."""
    data = pickle.dumps([{"sent_id": n, "raw": f"sentence {n}", "tokens": ["a", str(n)]} for n in range(50_000)], 2)
    started = time.process_time()
    assert len(unpickle(data, "refs.p")) == 50_000
    assert time.process_time() - started < 10
