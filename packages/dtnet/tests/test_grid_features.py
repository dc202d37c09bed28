"""Grid features in h5 files: the grid and never the regions, no noise for a missing image, a handle per process."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dtnet.data.grid_features import GridFeatures, write_grid_features
from tenfold import UserError
from tenfold.testing.processes import fork


def grid(image_id: int, rows: int = 49, width: int = 6) -> np.ndarray:
    return np.random.default_rng(image_id).standard_normal((rows, width)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three images as in the file that DTNet was trained on."""
    write_grid_features(tmp_path / "f.h5", ((number, grid(number)) for number in (5, 37209, 8)), key="features")
    return tmp_path / "f.h5"


def write_dlct(path: Path, grids: bool = True, boxes: bool = True) -> None:
    """As in the bigger files: regions under _features, boxes, sizes, and the grid under _grids."""
    with h5py.File(path, "w") as file:
        for image_id in (5, 8):
            if boxes:
                file[f"{image_id}_boxes"] = np.zeros((60, 4), np.float32)
            file[f"{image_id}_features"] = grid(image_id + 100, rows=60)
            file[f"{image_id}_size"] = np.array([480, 640])
            if grids:
                file[f"{image_id}_grids"] = grid(image_id)


def test_features_are_read_back(path: Path) -> None:
    features = GridFeatures(path)
    assert (features.key, features.d_in, features.rows, len(features)) == ("features", 6, 49, 3)
    assert features.ids() == (5, 8, 37209)
    assert features[37209].dtype == torch.float32
    assert torch.equal(features[37209], torch.from_numpy(grid(37209)))
    assert torch.equal(features.batch([8, 5]), torch.from_numpy(np.stack((grid(8), grid(5)))))
    assert 5 in features and 6 not in features


def test_grids_are_preferred_to_regions(tmp_path: Path) -> None:
    """Fails if "auto" looks for _features first: the official loader then trains on regions in silence."""
    write_dlct(tmp_path / "dlct.h5")
    features = GridFeatures(tmp_path / "dlct.h5")
    assert features.key == "grids"
    assert torch.equal(features[5], torch.from_numpy(grid(5)))
    assert features.ids() == (5, 8)


def test_regions_are_refused(tmp_path: Path) -> None:
    """Fails if rows are cut or padded to 49 instead of being counted."""
    write_dlct(tmp_path / "dlct.h5", grids=False, boxes=False)
    with pytest.raises(UserError, match=r"60 rows: regions were given instead of grids.*option key"):
        GridFeatures(tmp_path / "dlct.h5")
    write_dlct(tmp_path / "both.h5")
    with pytest.raises(UserError, match="regions were given instead of grids"):
        GridFeatures(tmp_path / "both.h5", key="features")


def test_a_missing_image_is_an_error_and_never_noise(path: Path) -> None:
    """The official loader feeds ten rows of uniform noise. Fails if anything is returned."""
    features = GridFeatures(path)
    with pytest.raises(UserError, match=r"no features of image 6: .*'6_features'"):
        features[6]
    with pytest.raises(UserError, match="no features of 2 images, the first is 6"):
        features.require([5, 7, 6])
    features.require([5, 8])


def test_half_precision_files_come_as_float32(tmp_path: Path) -> None:
    write_grid_features(tmp_path / "h.h5", [(1, torch.from_numpy(grid(1)))], dtype="float16")
    with h5py.File(tmp_path / "h.h5") as file:
        assert file["1_grids"].dtype == np.float16
    read = GridFeatures(tmp_path / "h.h5")[1]
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(grid(1)).half().float())


def test_preloaded_features_are_the_same_and_need_no_file(path: Path) -> None:
    expected = GridFeatures(path).batch([5, 8])
    features = GridFeatures(path, preload=True)
    path.unlink()
    assert torch.equal(features.batch([5, 8]), expected)


class Read(Dataset):
    """An item is (the process that read it, its features)."""

    def __init__(self, features: GridFeatures) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, bool]:
        value = self.features[self.features.ids()[index]]
        return os.getpid(), value, self.features._owner == os.getpid()


@pytest.mark.parametrize("way", ["forked", "pickled"])
def test_a_worker_opens_its_own_handle(way: str, path: Path) -> None:
    """Fails if the parent's open handle is read from in a worker (remove the check of the process)."""
    features = GridFeatures(path)
    features[5]  # the parent's handle is open now
    if way == "pickled":
        features = pickle.loads(pickle.dumps(features))
        assert features._file is None
    loader: Iterator = iter(DataLoader(Read(features), batch_size=None, num_workers=1, multiprocessing_context="fork"))
    rows = list(loader)
    for number, (_, value, _) in zip((5, 8, 37209), rows, strict=True):
        assert torch.equal(value, torch.from_numpy(grid(number)))
    assert all(pid != os.getpid() and owned for pid, _, owned in rows)
    assert torch.equal(features[8], torch.from_numpy(grid(8)))


def test_only_one_handle_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official loader opens the file for every item."""
    from dtnet.data import grid_features

    features, opened, really = GridFeatures(path), [], grid_features._open_h5
    monkeypatch.setattr(grid_features, "_open_h5", lambda where: opened.append(where) or really(where))
    features.batch([5, 8, 37209, 5])
    assert opened == [path]


def test_broken_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        GridFeatures(tmp_path / "nowhere.h5")
    with pytest.raises(UserError, match="unknown key of features: regions"):
        GridFeatures(path, key="regions")
    whole = path.read_bytes()
    for content in (b"", b"not h5", whole[: len(whole) // 2]):
        (tmp_path / "broken.h5").write_bytes(content)
        with pytest.raises(UserError, match="cannot read") as error:
            GridFeatures(tmp_path / "broken.h5")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("other", np.zeros((49, 6), np.float32), "no grid features.*<image id>_grids or <image id>_features"),
        ("5_grids", np.zeros((7, 7, 6), np.float32), "no rows of features"),
        ("5_grids", np.zeros((49, 6), np.int64), "no rows of features"),
        ("5_grids", np.zeros((36, 6), np.float32), "36 rows"),
    ],
)
def test_other_contents_are_refused(name: str, values: np.ndarray, message: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o.h5", "w") as file:
        file[name] = values
    with pytest.raises(UserError, match=message):
        GridFeatures(tmp_path / "o.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_features_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    """1e300 becomes infinity in float32. Fails if a caption is made, or a model trained, of them."""
    values = np.zeros((49, 6))
    values[3, 2] = value
    with h5py.File(tmp_path / "n.h5", "w") as file:
        file["1_grids"], file["2_grids"] = grid(1), values
    features = GridFeatures(tmp_path / "n.h5")
    assert bool(features[1].isfinite().all())
    with pytest.raises(UserError, match="image 2: 1 of 294 numbers are not finite"):
        features[2]
    with pytest.raises(UserError, match="not finite"):
        write_grid_features(tmp_path / "w.h5", [(2, values)])
    assert not (tmp_path / "w.h5").exists()


def test_a_damaged_object_is_one_line(tmp_path: Path) -> None:
    """Bytes are turned at sixty places behind the signature: headers, names, chunks. Fails if h5py's own errors, of six
    types, get through."""
    path, refused = tmp_path / "d.h5", 0
    with h5py.File(path, "w") as file:
        for number in range(20):
            kind = {"compression": "gzip"} if number % 2 else {}
            file.create_dataset(f"{number}_grids", data=grid(number), **kind)
    whole = path.read_bytes()
    for seed in range(60):
        content = bytearray(whole)
        rng = np.random.default_rng(seed)
        for place in rng.integers(96, len(content), 40):
            content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            features = GridFeatures(path)
            read = [features[number] for number in features.ids()]
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert all(bool(one.isfinite().all()) for one in read)
    assert refused > 20


def test_another_grid_is_read_when_asked_for(tmp_path: Path) -> None:
    write_grid_features(tmp_path / "g.h5", [(1, grid(1, rows=16))])
    assert GridFeatures(tmp_path / "g.h5", rows=16)[1].shape == (16, 6)


def test_a_width_that_changes_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["1_grids"], file["2_grids"] = grid(1), grid(2, width=5)
    with pytest.raises(UserError, match=r"'2_grids' is 5 wide.*expected 6"):
        GridFeatures(tmp_path / "w.h5")[2]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Fails if the h5 file is written under its own name."""

    output = tmp_path / "f.h5"

    def broken() -> Iterator[tuple[int, np.ndarray]]:
        yield 1, grid(1)
        assert not output.exists()
        raise UserError("broken image")

    for features, message in (
        (broken(), "broken image"),
        ([(1, grid(1)), (1, grid(1))], "image 1 twice"),
        ([(1, grid(1)), (2, grid(2, width=7))], r"features \[49, 7\]: image 2"),
        ([], "no features to write"),
    ):
        with pytest.raises(UserError, match=message):
            write_grid_features(output, features)
        assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot write features so"):
        write_grid_features(output, [(1, grid(1))], dtype="int8")


def test_a_full_disk_ends_the_writing_at_once(tmp_path: Path) -> None:
    """Each array is smaller than what HDF5 holds back. Fails if its warnings go by, and with them all images until it
    crashes while it closes the file."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # on a full disk the same, as ENOSPC
        taken: list[int] = []
        some = ((number, grid(number)) for number in range(1, 5000) if not taken.append(number))
        with pytest.raises(OSError, match="File too large") as refusal:
            write_grid_features(tmp_path / "features.h5", some)
        assert refusal.value.errno == errno.EFBIG and len(taken) < 100

    assert os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []
