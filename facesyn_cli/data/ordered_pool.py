"""Maps a function over items in several threads; results come in order, with flat memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = 8, chunk: int = 1
) -> Iterator[R]:
    """Yield `function(item)` for every item, in order.

    Args:
        function: Called in one of the threads; its error is raised here, at the place of its item.
        items: Taken only as far as `ahead` chunks per thread before the result that is due.
        workers: Number of threads; 0 calls the function in this one.
        ahead: Chunks per thread that may be in progress or waiting.
        chunk: Items that one thread takes at once, since handing over an item has a cost.
    """
    if workers == 0:
        yield from map(function, items)
        return
    items = iter(items)
    waiting: deque[Future[tuple[list[R], Exception | None]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while part := list(islice(items, chunk)):
                waiting.append(pool.submit(_work, function, part))
                if len(waiting) >= workers * ahead:
                    yield from _results(waiting.popleft())
            while waiting:
                yield from _results(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()


def _work(function: Callable[[T], R], part: list[T]) -> tuple[list[R], Exception | None]:
    """Return the results up to the first error, and that error."""
    results: list[R] = []
    try:
        for item in part:
            results.append(function(item))
    except Exception as error:
        return results, error
    return results, None


def _results(future: Future[tuple[list[R], Exception | None]]) -> Iterator[R]:
    results, error = future.result()
    yield from results
    if error is not None:
        raise error
