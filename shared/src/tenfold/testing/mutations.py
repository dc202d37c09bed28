"""Files damaged in every way a disk, a download or somebody else can damage them, by their kind and a seed."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tenfold.runs.unpickling import unpickle
from tenfold.testing.weights import Calls

Mutation = Callable[[bytes, random.Random], bytes]
DEEP = 3000

# What stands in a file where something else is expected.
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, -(2**63), 10**30, 10**600, 0.5, -0.0, 1e308, 1e-320, float("nan"),
    float("inf"), "", " ", "nan", "a" * 100_000, "\ud800", "\x1b[2J\x1b]0;title\x07", "[/bold][link=x]", "}, @evil{x,",
    "../../../etc/passwd", "/dev/zero", "http://example.org/a.jpg", "\x00", "2024-13-45", [], {}, [[]], [None],
    {"": None}, ["a", 1, None], [1e308, -1e308], list(range(2000)), {"a": {"b": {"c": 1}}},
)  # fmt: skip
YAML = (
    "a: 2024-13-45", "a: !!bool maybe", "a: !!python/object/apply:os.system [exit]", "? [a]\n: 1", "a: &b [*b]",
    "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]",
    "\t- a", "a: 1\na: 2", "--- a\n--- b", "a: !!binary x", "<<: 1", "a: 1_000_000_000_000_000_000_000_000_000_000",
)  # fmt: skip


def mutated(path: Path, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One damaged version of a file: what was done, and its bytes."""
    own = KINDS.get(path.suffix.lower().lstrip("."), {})
    # Half of the inputs have the damage that its kind knows, the rest what any file can suffer.
    table = own if own and rng.random() < 0.6 else ANY
    name = rng.choice(sorted(table))
    try:
        return name, table[name](content, rng)
    except Exception:
        # Another kind under that name, which its own damage cannot read.
        return "cut off", cut_off(content, rng)


def flip_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))] if content else b""


def _drop_middle(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randrange(1, 200) :]


def _repeat_middle(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start : start + 100] * 3 + content[start:]


def _insert_noise(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.randrange(1, 50)) + content[start:]


def _zeros(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + bytes(min(len(content) - start, 4096)) + content[start + 4096 :]


def _other_file(content: bytes, rng: random.Random) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    others = (b"<!doctype html><html></html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
              picture.getvalue(), b"{}", b"[]", b"null", b"PK\x03\x04", b"\x80\x04.", b"\x89HDF\r\n\x1a\n")  # fmt: skip
    return rng.choice(others)


ANY: dict[str, Mutation] = {
    "flip bytes": flip_bytes,
    "cut off": cut_off,
    "drop the middle": _drop_middle,
    "repeat the middle": _repeat_middle,
    "insert noise": _insert_noise,
    "zeros": _zeros,
    "another file": _other_file,
    "nothing": lambda content, rng: b"",
    "noise": lambda content, rng: rng.randbytes(rng.randrange(1, 3000)),
}


# -- json, json lines, yaml ------------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a parsed value, at most some thousands."""
    found, left = list[tuple[Any, Any]](), [value]
    while left and len(found) < 5000:
        one = left.pop()
        keys = one.keys() if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            left.append(one[key])
    return found


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def alter_value(value: Any, rng: random.Random) -> Any:
    """A parsed value with one place altered: another type, a huge number, a name changed, a part twice or gone."""
    value = copy.deepcopy(value)
    places = _places(value)
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 5:
        holder[key] = rng.choice(ODD)
    elif kind == 5:
        del holder[key]
    elif kind == 6 and isinstance(holder, dict):
        holder[rng.choice(("", "x" * 300, "\x1b[31mred", "[/b]", str(key) + " ", "__class__"))] = holder.pop(key)
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = [holder[key]]
    return value


def _json(content: bytes, rng: random.Random) -> bytes:
    return _dump(alter_value(json.loads(content), rng)).encode()


def _json_deep(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    places = _places(value)
    if not places:
        return b"[" * DEEP + b"]" * DEEP
    holder, key = rng.choice(places)
    holder[key] = "@deep@"
    left, right = rng.choice((("[", "]"), ('{"a":', "}")))
    return _dump(value).replace('"@deep@"', left * DEEP + "1" + right * DEEP).encode()


def _json_number(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    places = _places(value)
    holder, key = rng.choice(places)
    holder[key] = "@number@"
    number = rng.choice(("1" * 5000, "-" + "9" * 400, "1e999", "NaN", "Infinity", "-Infinity", "0.1e-400", "1e18"))
    return _dump(value).replace('"@number@"', number).encode()


def _lines(content: bytes, rng: random.Random, change: Mutation) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(max(1, len(lines) - 1))
    lines[at] = change(lines[at], rng)
    return b"\n".join(lines)


def _yaml(content: bytes, rng: random.Random) -> bytes:
    import yaml

    text = _dump(alter_value(yaml.safe_load(content), rng))
    return text.replace("NaN", ".nan").replace("Infinity", ".inf").encode()


def _yaml_text(content: bytes, rng: random.Random) -> bytes:
    return content + b"\n" + rng.choice(YAML).encode() + b"\n"


_JSON: dict[str, Mutation] = {"a value": _json, "a place": _json, "nesting": _json_deep, "a number": _json_number}
_JSONL: dict[str, Mutation] = {name: partial(_lines, change=change) for name, change in _JSON.items()}
_YAML: dict[str, Mutation] = {"a value": _yaml, "another value": _yaml, "a tag": _yaml_text}


# -- tables and plain text -------------------------------------------------------------------------------------------


def _text(content: bytes, rng: random.Random) -> bytes:
    words = (b"\x00", b"\xff\xfe", b'"', b"\t\t\t", b"," * 300, b"nan", b"1e999", b"9" * 500, b"\n\n\n", b"x" * 200_000,
             "\u202e\u0000".encode(), b"\r", b"-1", b"0")  # fmt: skip
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)] + rng.choice(words) + lines[at][-5:]
    return b"\n".join(lines)


_TEXT: dict[str, Mutation] = {"a line": _text, "another line": _text}


# -- pictures --------------------------------------------------------------------------------------------------------


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def _picture_modes(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice(((1, 1), (1, 40), (40, 1), (33, 47)))
    mode = rng.choice(("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16", "I", "F"))
    if mode == "F":
        values = np.linspace(0, rng.choice((1.0, 255.0, 1e30)), size[0] * size[1], dtype=np.float32)
        if rng.random() < 0.5:
            values[0] = rng.choice((np.nan, np.inf))
        return _saved(Image.fromarray(values.reshape(size[1], size[0])), "TIFF")
    if mode.startswith("I"):
        values = np.full(size[::-1], rng.choice((0, 300, 65535)), dtype=np.uint16 if mode == "I;16" else np.int32)
        return _saved(Image.fromarray(values), "TIFF")
    image = Image.new("RGBA", size, (200, 30, 30, 100)).convert(mode if mode != "PA" else "P")
    return _saved(image, "TIFF" if mode == "CMYK" else "PNG")


def _picture_sizes(content: bytes, rng: random.Random) -> bytes:
    width, height = rng.choice(((2**31 - 1, 1), (60_000, 60_000), (20_000, 1), (0, 5), (13_000, 13_000), (1, 30_000)))
    made = bytearray(_saved(Image.new("RGB", (4, 4)), "PNG"))
    made[16:24] = struct.pack(">II", width, height)
    made[29:33] = struct.pack(">I", zlib.crc32(bytes(made[12:29])))
    return bytes(made)


def _picture_line(content: bytes, rng: random.Random) -> bytes:
    return _saved(Image.new("RGB", rng.choice(((20_000, 1), (1, 20_000), (900, 2)))), "PNG")


def _picture_turned(content: bytes, rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.choice((3, 6, 8, 99, 0))
    return flip_bytes(_saved(Image.new("RGB", (30, 20), "blue"), "JPEG", exif=exif), rng)


_PICTURE: dict[str, Mutation] = {
    "a mode": _picture_modes,
    "a size": _picture_sizes,
    "a line of pixels": _picture_line,
    "turned": _picture_turned,
    "text": lambda content, rng: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "moving": lambda content, rng: _saved(
        Image.new("P", (9, 9)), "GIF", save_all=True, append_images=[Image.new("P", (9, 9), 3)]
    ),
}


# -- weights and arrays ----------------------------------------------------------------------------------------------


def _safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _safetensors(header: Any, data: bytes) -> bytes:
    text = _dump(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _safetensors_header(content: bytes, rng: random.Random) -> bytes:
    header, data = _safetensors_parts(content)
    return _safetensors(alter_value(header, rng), data)


def _safetensors_numbers(content: bytes, rng: random.Random) -> bytes:
    """A stretch of numbers that are NaN in every floating type."""
    header, data = _safetensors_parts(content)
    start = rng.randrange(max(1, len(data) - 64)) // 8 * 8
    return _safetensors(header, data[:start] + b"\xff" * 64 + data[start + 64 :])


def _safetensors_length(content: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, len(content) * 2))) + content[8:]


def shared_tuples(levels: int = 60) -> bytes:
    """A dictionary whose key is made of tuples that share their parts: 2^levels steps for whoever hashes it."""
    return b"\x80\x04}(K\x01" + b"2\x86" * levels + b"K\x01u."


def shared_lists(levels: int = 60) -> bytes:
    """Lists that share their parts: small in the file, endless to whoever walks through or prints them."""
    names = [bytes([level]) for level in range(levels)]
    return b"\x80\x04K\x01" + b"".join(b"q" + name + b"0(h" + name + b"h" + name + b"l" for name in names) + b"."


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that call, hang or fill the memory of whoever reads them without care.

    Args:
        marker: a folder that one of them makes.
    """
    deep: Any = []
    for _ in range(90):
        deep = [deep]
    return {
        "calls": pickle.dumps([Calls(marker)]),
        "names a class": b"\x80\x04cos\nsystem\n.",
        "shared tuples": shared_tuples(),
        "shared lists": shared_lists(),
        "deep": b"(" * 50_000 + b"l" * 50_000 + b".",
        "a memo with holes": b"\x80\x04K\x01r\xff\xff\xff\x7f.",
        "a text without end": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
        "bytes without end": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
        "a number without end": b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b"\x01.",
        "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
        "integers of one hash": b"\x80\x04}("
        + b"".join(b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(1, 20_000))
        + b"u.",
        "a frame too long": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"K\x01.",
        "nan": pickle.dumps([float("nan"), float("inf")]),
        "other values": pickle.dumps({"a": [1, None, "b", 10**30], 5: (1, 2), None: b"x"}),
        "nested": pickle.dumps(deep),
        "nothing": b".",
    }


def _hostile_pickle(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(sorted(hostile_pickles(Path("called")).items()))[1]


def _pickle_value(content: bytes, rng: random.Random) -> bytes:
    return pickle.dumps(alter_value(unpickle(content, "a pickle", latin1=True), rng), protocol=rng.choice((0, 2, 4)))


def _saved_tensors(content: bytes, rng: random.Random) -> bytes:
    import torch

    kept = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    holder = kept if isinstance(kept, dict) else {"": kept}
    tensors = [name for name, one in holder.items() if isinstance(one, torch.Tensor)]
    name = rng.choice(tensors)
    tensor = holder[name]
    holder[name] = rng.choice((
        torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor[..., None],
        tensor.flatten()[:-1], tensor[None], torch.zeros(1).expand(10**10), tensor.to(torch.complex64), None, "text", 3,
        tensor.double() * 1e300, torch.zeros(0), tensor.to_sparse() if tensor.dim() else tensor,
    ))  # fmt: skip
    if rng.random() < 0.2:
        holder["somebody.else"] = torch.zeros(2)
    made = io.BytesIO()
    torch.save(kept if isinstance(kept, dict) else holder[""], made, _use_new_zipfile_serialization=rng.random() < 0.8)
    return made.getvalue()


def _archived_pickle(content: bytes, rng: random.Random) -> bytes:
    made, hostile = io.BytesIO(), _hostile_pickle(content, rng)
    packed = rng.random() < 0.3
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as new,
    ):
        for entry in old.infolist():
            replaced = entry.filename.endswith("data.pkl") and not packed
            new.writestr(entry.filename, hostile if replaced else old.read(entry))
    return made.getvalue()


def _array_header(content: bytes, rng: random.Random) -> bytes:
    made = io.BytesIO()
    kind = rng.choice(("float64", "complex64", "object", "U5", "uint8", "int64"))
    array = np.array([[1, 2], [3, 4]], dtype=object if kind == "object" else None).astype(kind)
    np.save(made, array.reshape(rng.choice(((4,), (2, 2), (1, 2, 2), (4, 0)[:1]))), allow_pickle=True)
    return made.getvalue()


_WEIGHTS: dict[str, Mutation] = {
    "header": _safetensors_header,
    "numbers": _safetensors_numbers,
    "length of the header": _safetensors_length,
}
_PICKLE: dict[str, Mutation] = {"hostile": _hostile_pickle, "a value": _pickle_value}
_SAVED: dict[str, Mutation] = {
    "a tensor": _saved_tensors,
    "hostile": _hostile_pickle,
    "hostile inside": _archived_pickle,
}
_SUFFIXES: dict[str, dict[str, Mutation]] = {
    "json": _JSON, "jsonl": _JSONL, "yaml yml cff": _YAML, "tsv csv txt": _TEXT,
    "png jpg jpeg bmp gif tif tiff webp": _PICTURE, "safetensors": _WEIGHTS, "p pkl pickle": _PICKLE,
    "pt pth bin": _SAVED, "npy": {"header": _array_header},
}  # fmt: skip
KINDS = {suffix: table for suffixes, table in _SUFFIXES.items() for suffix in suffixes.split()}
