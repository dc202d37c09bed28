"""The benchmarks of the paper's hosts: how each is asked, and the files that it consists of. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eas.checkpoints.hosts import host_of
from eas.evaluation.settings import EvalSettings
from tenfold import UserError


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is asked and where its files lie.

    Attributes:
        split: the paper's. new_tokens: at most so many (a host that writes). pad: pictures padded to a square.
        tree: the folder's files, for `--help`. host: whose benchmark it is.
    """

    title: str
    split: str
    new_tokens: int
    pad: bool
    tree: str
    host: str = "llava"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave: metrics as in its record, and the files that were written."""

    benchmark: Benchmark
    metrics: Mapping[str, Any]
    files: Sequence[Path]


CONVERSATIONS = "<split>.json (LLaVA's conversations, with answer_type), images/"
BENCHMARKS = {
    "mini": Benchmark("the miniature's questions", "test", 4, True, CONVERSATIONS),
    "scienceqa": Benchmark(
        "ScienceQA", "test", 8, False, "problems.json, pid_splits.json, images/<split>/<id>/image.png"
    ),
    "aid": Benchmark("AID", "test20", 10, True, CONVERSATIONS.replace("<split>", "test20 or test50")),
    "slake": Benchmark("Slake (English)", "test_llava_en", 10, True, CONVERSATIONS.replace("images/", "imgs/")),
    "vqav2": Benchmark(
        "VQAv2",
        "test-dev2015",
        0,
        False,
        "v2_OpenEnded_mscoco_<split>_questions.json, v2_mscoco_<split>_annotations.json, <split>/COCO_*.jpg",
        "meter",
    ),
    "nlvr2": Benchmark(
        "NLVR2", "test1", 0, False, "nlvr2/data/<split>.json, <split>/*-img0.png and *-img1.png", "meter"
    ),
    "flickr30k": Benchmark(
        "Flickr30k retrieval", "test", 0, False, "karpathy/dataset_flickr30k.json, flickr30k-images/", "meter"
    ),
}
LAVIN_SCIENCEQA = Benchmark(
    "ScienceQA on LaVIN", "test", 64, False, BENCHMARKS["scienceqa"].tree, "lavin"
)  # the same files, other prompts
TASKS = {"vqav2": "vqa", "nlvr2": "nlvr2", "flickr30k": "irtr"}  # of METER


def fitting_host(settings: EvalSettings) -> str:
    """Whose model is evaluated: by what its folder holds, else as `--host` says, else LLaVA's.

    Raises:
        UserError: `--host`, the folder and the benchmark do not go together.
    """
    host = host_of(settings.model, settings.host)
    fitting = ["scienceqa"] if host == "lavin" else [name for name, one in BENCHMARKS.items() if one.host == host]
    if settings.benchmark not in fitting:
        raise UserError(f"--benchmark {settings.benchmark}", f"a {host} host", f"one of {', '.join(fitting)}")
    return host
