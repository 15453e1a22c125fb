"""Lets whoever runs the method show how far it has come; the method itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Bar(Protocol):
    """A progress bar, as ``tqdm`` has them."""

    def update(self, count: int = 1, /) -> object:
        """Note that ``count`` more items are done."""

    def close(self) -> None:
        """Note that no more come."""


class Silent:
    """A `Bar` that shows nothing."""

    def __init__(self, description: str, total: int) -> None:
        pass

    def update(self, count: int = 1, /) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing is left to close."""


_make_bar: ContextVar[Callable[[str, int], Bar]] = ContextVar("make_bar", default=Silent)


def progress(description: str, total: int) -> Bar:
    """A bar for ``total`` items: what `shown_by` set, or a silent one. The caller closes it."""
    make_bar = _make_bar.get()
    return make_bar(description, total)


def tracked(items: Sequence[Item], description: str) -> Iterator[Item]:
    """``items`` one after the other, while a bar counts them."""
    bar = progress(description, len(items))
    try:
        for item in items:
            yield item
            bar.update(1)
    finally:
        bar.close()


@contextmanager
def shown_by(make_bar: Callable[[str, int], Bar]) -> Iterator[None]:
    """Within this context bars are made by ``make_bar(description, total)``."""
    token = _make_bar.set(make_bar)
    try:
        yield
    finally:
        _make_bar.reset(token)
