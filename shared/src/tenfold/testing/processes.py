"""Processes that die on purpose, or work as ranks: forks, so that torch is loaded once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A dead rank leaves the others waiting for it; no test takes that long.
DEADLINE = 300.0


def fork(work: Callable[[], object], **environment: str) -> int:
    """Run `work` in a fork of this process; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment)
        work()
    except SystemExit as exit:
        os._exit(exit.code if isinstance(exit.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def _renew_thread_pool() -> None:
    """Let torch replace its pool of threads, which a fork does not inherit, before two threads can ask for it at once.

    The first to ask in a fork takes the dead pool away and makes a new one; a second thread in between finds none and
    fails with "Invalid thread pool" (seen when transformers materialises weights in several threads).
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


# In every fork of a test's process, multiprocessing's too.
os.register_at_fork(after_in_child=_renew_thread_pool)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int]:
    """Another process is writing a run there; yields its number."""
    from tenfold.runs.lock import one_writer

    folder.mkdir(parents=True, exist_ok=True)
    inside, outside = os.pipe(), os.pipe()

    def hold() -> None:
        with one_writer(folder):
            os.write(inside[1], b"x")
            os.read(outside[0], 1)

    child = fork(hold)
    os.read(inside[0], 1)
    try:
        yield child
    finally:
        os.write(outside[1], b"x")
        os.waitpid(child, 0)
        for end in (*inside, *outside):
            os.close(end)


def killed(work: Callable[[], object]) -> bool:
    """Whether `work`, in a fork, was ended by SIGKILL."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == -signal.SIGKILL


def apart(test: Callable[..., object]) -> Callable[..., None]:
    """A test in a fork of its own: what it does to the process (a device that is not there) ends with it."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        child = fork(functools.partial(test, *arguments, **options))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, f"failed in a process of its own, exit code {code}: see its traceback on standard error"

    return run


def die_at(place: Any, name: str, number: int) -> None:
    """Make the process kill itself at the `number`-th call of ``place.name`` (from 1), before it does its work."""
    original, calls = getattr(place, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(place, name, counted)


def in_ranks(work: Callable[[], object], world: int = 2, deadline: float = DEADLINE) -> None:
    """Run `work` in so many forks that `torch.distributed` takes for the ranks of one machine.

    Raises:
        AssertionError: a rank failed, or was not done in time; the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    ranks = {fork(work, RANK=str(rank), LOCAL_RANK=str(rank), **shared): rank for rank in range(world)}
    failed: dict[int, int | str] = {}
    end = time.monotonic() + deadline
    while ranks and not failed:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done in ranks:
            rank, code = ranks.pop(done), os.waitstatus_to_exitcode(status)
            if code:
                failed[rank] = code
        elif time.monotonic() > end:
            failed |= {rank: "not done in time" for rank in ranks.values()}
        else:
            time.sleep(0.02)
    for child in ranks:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not failed, f"ranks that failed, with their exit codes: {failed}"
