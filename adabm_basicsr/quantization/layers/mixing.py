"""Types of modules that are made while the program runs: a module's own type with a mixin.

The mixin's ``forward`` watches what that of the module computes. What it needs for that is a child
of the module, which the module itself doesn't know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


class MadeType(nn.Module):
    """Base of the mixins.

    Modules are pickled by what their types are made of, as these have no name to be found by.

    Attributes:
        prefix: What the names of the types begin with.
    """

    prefix: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixins: list[type[MadeType]] = []
        kind: Any = type(self)
        while issubclass(kind.__bases__[0], MadeType):
            mixin, kind = kind.__bases__
            mixins.insert(0, mixin)
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, (kind, mixins), *reduced[2:])


def made_type(mixin: type[MadeType], kind: type[nn.Module]) -> type[nn.Module]:
    """The type of modules of type ``kind`` with a mixin."""
    name = f"{mixin.prefix}{kind.__name__}"
    return type(name, (mixin, kind), {"__module__": kind.__module__})


def _new(kind: type[nn.Module], mixins: Sequence[type[MadeType]]) -> nn.Module:
    """A module without contents."""
    for mixin in mixins:
        kind = made_type(mixin, kind)
    return kind.__new__(kind)


@contextmanager
def set_aside(module: nn.Module, key: str) -> Iterator[Any]:
    """Within this context ``module`` is without a child, whose name is ``key``.

    A ``forward`` may go through all children, as that of ``nn.Sequential`` does, and mustn't run
    those that quantization added.
    """
    child = module._modules.pop(key)
    try:
        yield child
    finally:
        module._modules[key] = child
