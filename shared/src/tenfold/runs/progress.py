"""Progress of long work: a bar on a terminal, a line every so often where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

Item = TypeVar("Item")
EVERY_SECONDS = 60.0
# Wraps an iteration, with a description, to show how far it is: `track`, or in tests nothing.
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` while a bar on stderr shows count, rate and remaining time.

    Where stderr is no terminal (a cluster's log) a line says the same every `EVERY_SECONDS`.

    Args:
        total: the number of items, when `items` has no length.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not console.is_terminal:
        yield from _in_lines(items, description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, rate="")
        for item in items:
            yield item
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")


def _in_lines(items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    start = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said < EVERY_SECONDS:
            continue
        said, rate = now, done / (now - start)
        left = "" if total is None else f", about {(total - done) / rate / 60:.0f} min left"
        count = done if total is None else f"{done}/{total}"
        print(f"{description}: {count}, {rate:.2g}/s{left}", file=sys.stderr, flush=True)
