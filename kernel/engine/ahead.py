"""Items drawn ahead in a thread of their own: blocks are made ready while the device computes.

Owns `Ahead`. Knows nothing of what it draws.
"""
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Ahead(Generic[T]):
    """Items drawn `count` ahead in a thread of their own; an error of theirs is raised by `next`."""

    def __init__(self, items: Iterator[T], count: int) -> None:
        self._items = items
        # The loaders want the cores
        self._pool = ThreadPoolExecutor(1, "inputs", initializer=torch.set_num_threads, initargs=(1,))
        self._coming: deque[Future[T | None]] = deque(self._draw() for _ in range(count))

    def _draw(self) -> Future[T | None]:
        return self._pool.submit(next, self._items, None)

    def ready(self) -> bool:
        """True where `next` would give an item, or the end, without waiting."""
        return self._coming[0].done() and self._coming[0].exception() is None

    def next(self) -> T | None:
        """The next item, None after the last one."""
        item = self._coming.popleft().result()
        self._coming.append(self._draw())
        return item

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)
