"""Arrays of .npy files from elsewhere."""

import numpy as np
import pytest

from tenfold import UserError
from tenfold.arrays import read_array


def test_an_array_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert read_array(tmp_path / "a.npy", "ids").tolist() == [[0, 1, 2], [3, 4, 5]]


def header(text):
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


BROKEN = {
    "cut": lambda whole: whole[:-3],
    "empty": lambda whole: b"",
    "a header that never closes": lambda whole: header("{'descr': '<i8', 'shape': (3,"),
    "a header of brackets": lambda whole: header("(" * 9000),
    "a header of code": lambda whole: header("__import__('os')"),
    "more than memory": lambda whole: header("{'descr': '<i8', 'fortran_order': False, 'shape': (2**50,), }"),
    "a terabyte of nothing": lambda whole: header(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999,), }"
    ),
    "another file": lambda whole: b"not an array",
    "the first bytes of a zip": lambda whole: b"PK\x03\x04",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_array_is_one_line(kind, tmp_path):
    """Fails if an error of numpy's, or of Python's tokenizer behind it, gets through."""
    np.save(tmp_path / "a.npy", np.arange(100))
    (tmp_path / "a.npy").write_bytes(BROKEN[kind]((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(UserError, match=r"cannot be read \(.+\): .*a\.npy \(expected ids\)"):
        read_array(tmp_path / "a.npy", "ids")


def test_objects_and_archives_are_refused(tmp_path):
    """Fails if a pickle inside an array is opened."""
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "many.npz", a=np.zeros(1))
    for name in ("objects.npy", "many.npz"):
        with pytest.raises(UserError, match=name):
            read_array(tmp_path / name, "ids")
