"""A folder of images into a file of grid features: `dtnet extract --images DIR --out features.h5`.

The command fills `ExtractSettings` and calls `run_extract`. Work is kept in parts of some hundred images beside the
output ("<out>.parts"): an extraction that was killed goes on where it was, and the h5 file appears when it is complete.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dtnet.data.captions import read_captions
from dtnet.data.grid_features import GridFeatures, write_grid_features
from dtnet.features import FeatureExtractor, build_extractor
from tenfold import UserError
from tenfold.data.pictures import open_picture
from tenfold.pickled import load_pickled
from tenfold.runs import atomic_write_json, fingerprint, read_json, track

logger = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
MAPS = ".pth"
PART = 256  # images
RANDOM = "random"  # in place of a file of weights


@dataclass(frozen=True)
class ExtractSettings:
    """What `dtnet extract` takes.

    Args:
        images: a folder of images, searched recursively; or of "<image id>.pth" maps as grid-feats-vqa writes them.
        out: the h5 file to write.
        extractor: settings of `dtnet.features.build_extractor`; not used for .pth maps. A backbone's "weights" are a
            file, or "random".
        captions: a Karpathy json or annotation folder whose file names give the image ids (Flickr's names hold none).
        batch_size: images at a time.
        dtype: "float32" or "float16".
        grid: cells along each edge, for .pth maps.
    """

    images: Path
    out: Path
    extractor: Mapping[str, Any] = field(default_factory=lambda: {"name": "backbone"})
    captions: Path | None = None
    batch_size: int = 16
    dtype: str = "float32"
    grid: int = 7


def run_extract(settings: ExtractSettings) -> dict[str, Any]:
    """Extract the features of images, or convert .pth maps.

    Returns:
        "images": how many, "d_in": the width, "output": the file, "resumed": how many were there already, "ids": the
        json of running numbers, or None where file names or captions gave the ids.

    Raises:
        UserError: no such folder, neither images nor maps in it, a broken one, ids that clash, an output that is there
            or cannot be written, a backbone without weights.
    """
    names = None if settings.captions is None else read_captions(settings.captions).files
    if any(settings.images.rglob(f"*{MAPS}")):
        return convert_maps(settings.images, settings.out, grid=settings.grid, dtype=settings.dtype)
    chosen = dict(settings.extractor)
    if chosen.get("name") == "backbone":
        if chosen.get("weights") is None:
            raise UserError("no weights", "--weights", "a state dict of the backbone; or random, to try things out")
        if chosen["weights"] == RANDOM:
            del chosen["weights"]
    extractor = build_extractor(chosen)
    return extract(
        settings.images, settings.out, extractor, names=names, batch_size=settings.batch_size, dtype=settings.dtype
    )


def extract(
    images: str | Path,
    output: str | Path,
    extractor: FeatureExtractor,
    *,
    names: Mapping[int, str] | None = None,
    batch_size: int = 16,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Write the grid features of a folder of images.

    The image's id is the integer after the last underscore of the file's name ("COCO_val2014_000000037209.jpg":
    37209), or the whole name ("37209.jpg"). Where no name has one, images are numbered from 0 in the order of their
    names, and "<output>.ids.json" says which is which.

    Args:
        images: the folder; searched recursively.
        output: the h5 file, which must not exist.
        extractor: makes the features.
        names: image id -> file name (`CaptionSet.files`): takes the ids, and only these images, from there.
        batch_size: images at a time.
        dtype: "float32" or "float16".

    Returns, Raises: as `run_extract`.
    """
    found = _find(images, IMAGES)
    files, numbered = (_ids_from_captions(found, names), False) if names is not None else _ids_of_names(found)
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]

    def features(part: Sequence[tuple[int, Path]]) -> Iterator[tuple[int, Tensor]]:
        opened = [open_picture(path, raw=True) for _, path in part]
        yield from zip((image_id for image_id, _ in part), extractor(opened), strict=True)

    settings = {"extractor": extractor.settings(), "dtype": dtype}
    report = _in_parts(Path(output), batches, features, settings, extractor.grid**2)
    ids_file = None
    if numbered:
        ids_file = Path(f"{output}.ids.json")
        atomic_write_json(ids_file, {path.relative_to(images).as_posix(): image_id for image_id, path in files})
        logger.info("no ids in the names: numbered from 0, see %s", ids_file)
    return {**report, "ids": None if ids_file is None else str(ids_file)}


def convert_maps(maps: str | Path, output: str | Path, *, grid: int = 7, dtype: str = "float32") -> dict[str, Any]:
    """Convert what grid-feats-vqa writes: "<image id>.pth", one map `[1, width, rows, columns]` each.

    A map is averaged to `grid` x `grid` cells and flattened row by row.

    Returns, Raises: as `run_extract`.
    """
    files, _ = _ids_of_names(_find(maps, (MAPS,)), required=True)

    def features(part: Sequence[tuple[int, Path]]) -> Iterator[tuple[int, Tensor]]:
        for image_id, path in part:
            yield image_id, F.adaptive_avg_pool2d(_read_map(path), grid).flatten(1).T

    settings = {"extractor": {"name": "maps of grid-feats-vqa", "grid": grid}, "dtype": dtype}
    report = _in_parts(Path(output), [[one] for one in files], features, settings, grid**2)
    return {**report, "ids": None}


def _read_map(path: Path) -> Tensor:
    """A map float32 `[width, rows, columns]`."""
    expected = "a tensor [1, width, rows, columns]"
    read = load_pickled(path, expected)
    if not isinstance(read, Tensor) or read.dim() not in (3, 4) or (read.dim() == 4 and len(read) != 1):
        what = f"a tensor {list(read.shape)}" if isinstance(read, Tensor) else type(read).__name__
        raise UserError(what, path, expected)
    return read.float().reshape(read.shape[-3:])


def _find(folder: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", folder, "a folder of images")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    if not found:
        raise UserError("no images", folder, f"files that end in {', '.join(suffixes)}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _ids_of_names(paths: Sequence[Path], required: bool = False) -> tuple[list[tuple[int, Path]], bool]:
    """(id, file) by ascending id, and whether the ids are running numbers."""
    matches = [re.search(r"(?:^|_)(\d+)$", path.stem) for path in paths]
    named = [(int(match[1]), path) for match, path in zip(matches, paths, strict=True) if match]
    if not named and not required:
        return list(enumerate(paths)), True
    if len(named) < len(paths):
        nameless = next(path for match, path in zip(matches, paths, strict=True) if not match)
        raise UserError("no image id in the name", nameless, "<name>_<integer> like the other files, or in no name")
    return sorted(_unique(named)), False


def _unique(files: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    seen: dict[int, Path] = {}
    for image_id, path in files:
        if image_id in seen:
            raise UserError(f"image id {image_id} twice", f"{seen[image_id]} and {path}", "one file an id")
        seen[image_id] = path
    return files


def _ids_from_captions(paths: Sequence[Path], names: Mapping[int, str]) -> list[tuple[int, Path]]:
    by_name = {path.name: path for path in paths}
    files = []
    for image_id, name in names.items():
        if (path := by_name.get(Path(name).name)) is None:
            raise UserError("no such image", name, "every image of the captions in the folder")
        files.append((image_id, path))
    return sorted(_unique(files))


def _in_parts(
    output: Path,
    batches: Sequence[Sequence[tuple[int, Path]]],
    features: Any,
    settings: dict[str, Any],
    rows: int,
) -> dict[str, Any]:
    """Write part after part, then all of them into `output`; parts of an earlier run with equal settings are kept."""
    if output.exists():
        raise UserError("already exists", output, "a file that does not exist yet")
    folder = output.with_name(f"{output.name}.parts")
    # The same files in the same order, extracted alike: else the parts belong to other work.
    files = [one for batch in batches for one in batch]
    identity = {**settings, "images": _identity(files), "batch": len(batches[0]), "part": PART}
    _claim(folder, identity)
    dtype, about = settings["dtype"], described(settings["extractor"])
    size = max(1, PART // len(batches[0]))
    groups = [batches[start : start + size] for start in range(0, len(batches), size)]
    parts = [folder / f"{number:06d}.h5" for number in range(len(groups))]
    resumed = sum(len(batch) for group, part in zip(groups, parts, strict=True) if part.exists() for batch in group)
    if resumed:
        logger.info("%s: %d images were done before", output, resumed)
    todo = [(group, part) for group, part in zip(groups, parts, strict=True) if not part.exists()]
    progress = track((batch for group, _ in todo for batch in group), "features", sum(len(group) for group, _ in todo))
    for group, part in todo:
        write_grid_features(part, (one for _ in group for one in features(next(progress))), dtype=dtype)
    next(progress, None)  # ends the bar
    count = write_grid_features(output, _of_parts(parts, rows), dtype=dtype, extractor=about)
    shutil.rmtree(folder)
    written = GridFeatures(output, rows=rows)
    return {"images": count, "d_in": written.d_in, "output": str(output), "resumed": resumed}


def _identity(files: Sequence[tuple[int, Path]]) -> str:
    """SHA-256 over every image's id, name, size and content: a picture that changed under its name is another one."""
    whole = hashlib.sha256()
    for image_id, path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{image_id}\0{path.name}\0{path.stat().st_size}\0{content}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an h5 file says of its extractor: its settings, the weights by name and SHA-256, or "random"."""
    about = {name: value for name, value in settings.items() if name != "device"}
    if "weights" in about:
        about["weights"] = RANDOM if about["weights"] is None else Path(about["weights"]).name
    return about


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    mark = folder / "settings.json"
    if mark.is_file():
        if fingerprint(read_json(mark)) != fingerprint(identity):
            raise UserError("was begun with other images or settings", folder, "the same ones, or no such folder")
        return
    atomic_write_json(mark, identity)


def _of_parts(parts: Iterable[Path], rows: int) -> Iterator[tuple[int, Tensor]]:
    for part in parts:
        read = GridFeatures(part, rows=rows)
        yield from ((image_id, read[image_id]) for image_id in read.ids())
        read.close()
