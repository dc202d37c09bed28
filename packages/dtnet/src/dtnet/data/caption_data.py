"""A data set of captions and grid features, as the settings name it; the mini world's is drawn when none is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dtnet.data.captions import CaptionSet, read_captions
from dtnet.data.grid_features import GridFeatures
from dtnet.data.settings import DataSettings
from dtnet.vocabulary import TOKENISERS, Vocabulary
from tenfold import UserError
from tenfold.runs import fingerprint, sample_rng

# The folder of a run that the mini world's data set is drawn into.
MINI_FOLDER = "data"


@dataclass(frozen=True)
class CaptionData:
    """What a training or an evaluation reads.

    Attributes:
        captions: who said what of which image, by split.
        features: image id -> grid.
        vocabulary: words and ids.
        files: name -> the file or folder it was read from.
    """

    captions: CaptionSet
    features: GridFeatures
    vocabulary: Vocabulary
    files: dict[str, Path]

    def fingerprints(self) -> dict[str, str]:
        """Name -> SHA-256 of what was read."""
        return {name: fingerprint(path) for name, path in self.files.items()}


def find_folder(settings: DataSettings, output: Path, draw: bool = True) -> Path:
    """The folder of the data set: the one that is named, or the mini world's, drawn into ``output/data``.

    Raises:
        UserError: none is named and the config is not the mini world's.
    """
    if settings.folder is not None:
        return Path(settings.folder)
    if settings.mini is None:
        raise UserError("no data", "--data", f"a folder with {settings.captions} and {settings.features}")
    folder = output / MINI_FOLDER
    if draw and not folder.exists():
        from dtnet.data.mini import write_mini_coco

        mini = settings.mini
        write_mini_coco(folder, mini.seed, mini.train, mini.val, mini.test, images=False, tagged=mini.tagged)
    return folder


def open_data(settings: DataSettings, folder: Path, grid: int) -> CaptionData:
    """Open a data set.

    Args:
        settings: which files, and how captions become words.
        folder: where they lie.
        grid: cells along a side that every image must have.

    Raises:
        UserError: a file is missing or broken, or has another grid.
    """
    files = {"captions": folder / settings.captions, "features": folder / settings.features}
    if settings.vocabulary is not None:
        files["vocabulary"] = folder / settings.vocabulary
    captions, vocabulary = open_captions(settings, folder)
    features = GridFeatures(files["features"], settings.key, rows=grid**2, preload=settings.in_memory)
    return CaptionData(captions, features, vocabulary, files)


def open_captions(settings: DataSettings, folder: Path) -> tuple[CaptionSet, Vocabulary]:
    """The captions of a data set, and its vocabulary: the one that is named, else the words of train and val.

    Raises:
        UserError: a file is missing or broken.
    """
    captions = read_captions(folder / settings.captions)
    if settings.vocabulary is not None:
        return captions, Vocabulary.load(folder / settings.vocabulary)
    tokenise = TOKENISERS[settings.tokens]
    words = (tokenise(text) for split in ("train", "val") for _, text in captions.pairs(split))
    return captions, Vocabulary.build(words, settings.min_count)


class SwappedFeatures:
    """The features of a data set, every image's given to another one by a fixed permutation.

    A model that is trained on them learns what captions teach without their images: the control that a captioner must
    beat.

    Args:
        features: the true ones.
        image_ids: whose features are swapped among each other.
        seed: of the permutation.
    """

    def __init__(self, features: GridFeatures, image_ids: Iterable[int], seed: int) -> None:
        ids = list(image_ids)
        # Along one random circle nobody keeps its own.
        circle = [ids[number] for number in sample_rng(seed, 0, 0).permutation(len(ids))]
        self._features = features
        self._other = dict(zip(circle, circle[1:] + circle[:1], strict=True))

    def __getitem__(self, image_id: int) -> Tensor:
        """Another image's grid: float32 ``[rows, d_in]``."""
        return self._features[self._other[image_id]]

    def require(self, image_ids: Iterable[int]) -> None:
        """Raises UserError where features are missing."""
        self._features.require(image_ids)
