"""Work on items in several threads and get the results in the items' order, with flat memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = 8) -> Iterator[R]:
    """Yield `function(item)` for every item, in order.

    Args:
        function: Called in one of the threads; its error is raised here, at the place of its item.
        items: Taken only as far as `ahead` items per thread before the result that is due.
        workers: Number of threads; 0 calls the function in this one.
        ahead: How many items per thread may be under way or waiting.
    """
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= workers * ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
