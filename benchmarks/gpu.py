"""Tests marked cuda and every bench on a device, each with its time, and a summary: see `gpu.sh`.

    python benchmarks/gpu.py --device cpu --only fitprune --output dry

A step that fails or runs out of time is said and the next one begins. Exit code 1 if one did.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from tenfold import UserError
from tenfold.cli.output import quiet_libraries
from tenfold.runs import atomic_write_json
from tenfold.runs.ranks import choose_device

ROOT = Path(__file__).parent.parent
MINUTES = 8.0
# A bench takes at most this many seconds on a GPU, so that one of them leaves time to the others; and on a CPU.
BENCH_SECONDS = (90.0, 900.0)
# Paper -> options of its bench on a GPU, where the defaults are the full size; and at a size of seconds for a CPU.
BENCHES = {
    "fitprune": ("--repeats 3", "--layers 1 --repeats 1 --methods fastv"),
    "dyvte": ("--layers all --repeats 3", "--layers 2 --exit-layer 0 --repeats 1 --decode-tokens 2"),
    "gamma_mod": ("--layers all --repeats 3", "--layers 8 --tokens 100 --repeats 1 --decode-tokens 2"),
    "eas": ("--rounds 3", "--layers 2 --prompt 32 --tokens 2 --rounds 1"),
    "llava_hr": (
        "--repeats 2",
        "--layers 1 --vit-layers 4 --conv-depths 1,1,1,1 --image-size 256 --llava-size 112 --repeats 1",
    ),
    "flashsloth": ("--layers all --repeats 3", "--layers 1 --vision-layers 1 --new-tokens 2 --repeats 1"),
    "dit_sam": ("--layers all --repeats 2", "--layers 1 --size 256 --repeats 1"),
    "e3_facenet": ("--repeats 2", "--views 1 --repeats 1"),
    "dtnet": ("--full --repeats 2", "--batch 1 --max-len 2 --repeats 1"),
    "inst_diff_edit": ("--dtype float16 --repeats 1", "--repeats 1"),
}


@dataclass(frozen=True)
class Step:
    """A command and what came of it.

    Attributes:
        seconds: it took. exit_code: None where its time ran out. log: its output, in the folder.
    """

    name: str
    command: str
    seconds: float
    exit_code: int | None
    log: str


def machine(device: torch.device) -> dict[str, object]:
    """Device, date and versions."""
    import diffusers
    import transformers

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
    }


def take(name: str, words: list[str], folder: Path, seconds: float, environment: dict[str, str]) -> Step:
    """Run one command, its output into a file; it is ended when its time is over."""
    log = folder / f"{name}.log"
    start = time.monotonic()
    with log.open("w") as stream:
        try:
            code: int | None = subprocess.run(
                words, cwd=ROOT, env=os.environ | environment, stdout=stream, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    shown = " ".join(["python", *words[1:]])
    return Step(name, shown.replace(str(folder), folder.name), round(time.monotonic() - start, 1), code, log.name)


def steps(device: str, folder: Path, only: list[str], minutes: float) -> list[Step]:
    """All steps, one after the other, in the time that there is."""
    end, cpu, found = time.monotonic() + 60 * minutes, torch.device(device).type == "cpu", []
    papers = [paper for paper in BENCHES if paper in only or not only]
    workers = min(8, max(1, (os.cpu_count() or 1) // 2))
    tests = [
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers), "--dist", "loadgroup", "-m", "cuda",
        "tests/test_cuda.py", *(["-k", " or ".join(papers)] if only else []),
    ]  # fmt: skip
    plan = [("tests", tests, 60 * minutes)]
    for paper in papers:
        # `eas bench` writes a run's folder, the others one file.
        record = folder / (f"{paper}-bench" if paper == "eas" else f"{paper}-bench.json")
        options = BENCHES[paper][cpu].split()
        plan.append(
            (
                f"{paper}-bench",
                ["-m", paper, "bench", "--device", device, *options, "--output", str(record)],
                BENCH_SECONDS[cpu],
            )
        )
    for name, words, most in plan:
        left = end - time.monotonic()
        environment = {"TENFOLD_DEVICE": device, "OMP_NUM_THREADS": "1"} if name == "tests" else {}
        if left < 5:
            step = Step(name, " ".join(words), 0.0, None, "")
        else:
            step = take(name, [sys.executable, *words], folder, min(most, left), environment)
        said = {0: "done", None: "OUT OF TIME"}.get(step.exit_code, f"EXIT CODE {step.exit_code}")
        print(f"{step.name}: {said}, {step.seconds} s", flush=True)
        found.append(step)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu for a dry run at small sizes")
    parser.add_argument("--output", type=Path, help="a new folder; default: benchmarks/results/gpu-<date>")
    parser.add_argument("--only", action="append", default=[], choices=list(BENCHES), help="a paper; may be repeated")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it (default 8)")
    options = parser.parse_args()
    quiet_libraries()
    folder = options.output or ROOT / "benchmarks" / "results" / f"gpu-{datetime.now(UTC):%Y%m%d}"
    try:
        device = choose_device(options.device)
        if folder.exists():
            raise UserError("this folder is there already", str(folder), "a new one")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = folder.resolve()
    folder.mkdir(parents=True)
    found = steps(str(device), folder, options.only, options.minutes)
    atomic_write_json(folder / "summary.json", {**machine(device), "steps": [asdict(step) for step in found]})
    done = sum(step.exit_code == 0 for step in found)
    print(f"{done} of {len(found)} steps done; {folder}")
    return int(done < len(found))


if __name__ == "__main__":
    raise SystemExit(main())
