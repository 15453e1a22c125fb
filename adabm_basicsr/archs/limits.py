"""Builds what a file describes only as far as the file can hold it.

A description may come from anyone and name any size: a billion blocks, say. The weights that the
file holds say how large its network can be at most.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from adabm_basicsr.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on

# A network before its preparation may be larger than what is stored of it: of the five branches of
# a re-parameterised layer there is one convolution left.
MOST_TIMES = 16
# Tables of positions and masks aren't stored: GRL makes 14 million of them, of any size of network,
# and spandrel builds each network twice.
FEW_VALUES = 2**25
FEW_TENSORS = 2_000
MOST_TENSORS = 200_000
MODULES_PER_TENSOR = 4  # activations and containers have none
# Values of what a small network computes on the way.
LARGEST_TENSOR = 2**26


@dataclass
class Held:
    """What a file holds.

    Attributes:
        values: How many, at most.
        tensors: How many tensors they make up, at most.
    """

    values: int
    tensors: int


def held_by(tensors: Iterable[Tensor]) -> Held:
    """What tensors of a file hold; those that share memory hold it once."""
    values: dict[int, int] = {}
    count = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        held = storage.nbytes() // tensor.element_size()
        values[place] = max(held, values.get(place, 0))
        count += 1
    return Held(sum(values.values()), count)


class Limits(TorchDispatchMode):
    """Context in which what is built can't be larger than what a file holds.

    Parameters, buffers and modules are counted as they are registered, and no tensor is made that
    is larger than the largest that there may be. Loops that make none of these aren't seen.

    Args:
        held: What the file holds.

    Raises:
        CheckpointError: More was to be made.
    """

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.values_left = MOST_TIMES * held.values + FEW_VALUES
        self.tensors_left = min(MOST_TIMES * held.tensors + FEW_TENSORS, MOST_TENSORS)
        self.modules_left = MODULES_PER_TENSOR * self.tensors_left
        self.largest = max(self.values_left, LARGEST_TENSOR)
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            hooks.register_module_parameter_registration_hook(self._count_tensor),
            hooks.register_module_buffer_registration_hook(self._count_tensor),
            hooks.register_module_module_registration_hook(self._count_module),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        while self._handles:
            self._handles.pop().remove()

    def _count_tensor(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != self._thread:
            return
        self.values_left -= tensor.numel()
        self.tensors_left -= 1
        if self.values_left < 0 or self.tensors_left < 0:
            raise _too_large()

    def _count_module(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        if threading.get_ident() != self._thread:
            return
        self.modules_left -= 1
        if self.modules_left < 0:
            raise _too_large()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._size_of_result(func, args, kwargs) > self.largest:
            raise _too_large()
        return func(*args, **kwargs)

    def _size_of_result(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> int:
        """Values that an operation makes, found on tensors without memory; 0 if that can't be."""
        shares_memory = any(result.alias_info is not None for result in func._schema.returns)
        if shares_memory:
            return 0
        args, kwargs = tree_map_only(Tensor, _without_memory, (args, kwargs))
        if any(argument.name == "device" for argument in func._schema.arguments):
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            made = func(*args, **kwargs)
        except Exception:  # it depends on values, say
            return 0
        return sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _too_large() -> CheckpointError:
    return CheckpointError("the network that it describes is larger than what the file holds of it")
