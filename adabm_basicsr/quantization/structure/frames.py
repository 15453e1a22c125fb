"""Finds the frame of a clip that each call of a layer belongs to.

A call belongs to the frame from which the fewest layers lead to its input. In a recurrent network
that is the frame at hand: earlier frames come to it through a state, and so through more layers.
Where two frames are equally near, the call belongs to the clip: a convolution over frames, say, or
the alignment of a frame to another. A layer may see several frames side by side, each in a row of
its input. Flow and the offsets of a deformable convolution tell nothing: they come of two frames,
and move what belongs to one.

The network runs once on a small clip. Beside each of its tensors goes one of codes: for each value
the nearest frame, and how many layers away it is. What moves values moves their codes too.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from adabm_basicsr.quantization.layers import DeformableProduct
from adabm_basicsr.quantization.structure.clips import run_on_clip
from adabm_basicsr.quantization.structure.flow import estimates_flow
from adabm_basicsr.quantization.structure.tracing import first_argument

CLIP = -1  # instead of a frame
# A code is the number of layers times LAYER, plus the frame, or SEVERAL if two are as near.
LAYER = 1 << 16
SEVERAL = LAYER - 1
NO_FRAME = (1 << 30) + SEVERAL

aten = torch.ops.aten
# Operations that move values without changing them.
_MOVES = {
    aten.alias,
    aten.as_strided,
    aten.cat,
    aten.clone,
    aten.detach,
    aten.expand,
    aten.flip,
    aten.index,
    aten.index_select,
    aten.permute,
    aten.repeat,
    aten.select,
    aten.slice,
    aten.split,
    aten.split_with_sizes,
    aten.squeeze,
    aten.squeeze_,
    aten.stack,
    aten.t,
    aten.t_,
    aten.transpose,
    aten.transpose_,
    aten.unbind,
    aten.unsqueeze,
    aten.unsqueeze_,
    aten.view,
    aten._reshape_alias,
    aten._unsafe_view,
}
# Operations that take nothing but the shape of a tensor.
_SHAPES = {
    aten.empty_like,
    aten.full_like,
    aten.new_empty,
    aten.new_full,
    aten.new_ones,
    aten.new_zeros,
    aten.ones_like,
    aten.rand_like,
    aten.randn_like,
    aten.zeros_like,
}

# Of each layer the frame of each row of its input, or `CLIP`, for each call.
FramesOfCalls = dict[str, list[list[int]]]


def find_frames(network: nn.Module, layers: Mapping[str, nn.Module], clip: Tensor) -> FramesOfCalls:
    """Which frame each call of some layers belongs to.

    Args:
        network: A network that takes clips; left as it was.
        layers: Layers of it, by name.
        clip: ``(1, T, C, H, W)``; what is in it doesn't matter.

    Raises:
        AdaBMError: The network doesn't take such a clip.
    """
    follower = _Follower(layers)
    # In inference mode some operations come whole, not as the moves that they are made of.
    with torch.inference_mode(False), follower.hooked(network), follower:
        follower.codes[clip] = _codes_of_frames(clip)
        run_on_clip(network, clip)
    return dict(follower.found)


def _codes_of_frames(clip: Tensor) -> Tensor:
    frames = torch.arange(clip.shape[1], dtype=torch.int32, device=clip.device)
    return frames.view(1, -1, 1, 1, 1).expand(clip.shape).clone()


class _Follower(TorchDispatchMode):
    """Keeps codes beside the tensors of a network.

    Args:
        layers: Layers to note, by name.

    Attributes:
        codes: Codes of each tensor that frames lead to, int32 of its shape.
        found: See `FramesOfCalls`.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = {layer: name for name, layer in layers.items()}
        self.codes = WeakTensorKeyDictionary()
        self.found: defaultdict[str, list[list[int]]] = defaultdict(list)
        # Layers and flow estimation that run: what goes on inside doesn't matter.
        self._inside: list[nn.Module] = []

    @contextmanager
    def hooked(self, network: nn.Module) -> Iterator[None]:
        """Within this context the layers, and modules that estimate flow, are followed."""
        handles: list[RemovableHandle] = []
        for module in network.modules():
            if module in self.names or estimates_flow(module):
                enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                leave = module.register_forward_hook(self._leave, with_kwargs=True)
                handles += [enter, leave]
            if isinstance(module, DeformableProduct):
                handles.append(module.register_forward_pre_hook(self._forget_moves))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forget_moves(self, module: nn.Module, args: tuple) -> None:
        """Of what a deformable convolution takes, offsets and masks have no frame."""
        for moves in args[1:]:
            self.codes.pop(moves, None)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self._inside and module in self.names:
            rows = self._rows(first_argument(args, kwargs))
            self.found[self.names[module]].append(_frames(rows))
        self._inside.append(module)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self._inside.pop()
        if self._inside or module not in self.names:
            return
        rows = self._rows(first_argument(args, kwargs)) + LAYER
        rows = rows.clamp(max=NO_FRAME)
        self.codes[output] = _spread(rows, output)

    def _rows(self, x: Tensor) -> Tensor:
        """Code of each row of a tensor along its first axis, ``(B,)``."""
        return _nearest_of_rows(self._codes_of(x))

    def _codes_of(self, x: Tensor) -> Tensor:
        codes = self.codes.get(x)
        if codes is None:
            codes = torch.full(x.shape, NO_FRAME, dtype=torch.int32, device=x.device)
        return codes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if self._inside or func.overloadpacket in _SHAPES:
            return made
        taken = []
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf in self.codes:
                taken.append(leaf)
        if taken:
            self._follow(func, args, kwargs, taken, made)
        return made

    def _follow(
        self, func: Any, args: tuple, kwargs: dict[str, Any], taken: list[Tensor], made: Any
    ) -> None:
        """Give codes to what an operation made of tensors that have some."""
        if func.overloadpacket in _MOVES:
            moved_args, moved_kwargs = tree_map_only(Tensor, self._moved, (args, kwargs))
            codes = func(*moved_args, **moved_kwargs)
            for tensor, of_tensor in zip(tree_leaves(made), tree_leaves(codes), strict=True):
                self.codes[tensor] = of_tensor
            return
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            codes = _combined([self.codes[source] for source in taken], tensor)
            if tensor in self.codes:
                # Written in place; views of it see it too.
                self.codes[tensor].copy_(codes)
            else:
                self.codes[tensor] = codes

    def _moved(self, x: Tensor) -> Tensor:
        """What moves in place of a tensor: its codes, but indices as they are."""
        if x.is_floating_point():
            return self._codes_of(x)
        return x


def _combined(codes: list[Tensor], made: Tensor) -> Tensor:
    """Codes of what was made of tensors with codes.

    Where shapes fit, each value has the nearest code of the values that it may be made of. Say that
    frame 0 is two layers away from all values of one tensor, and frame 1 three from those of
    another: their sum has frame 0, two layers away. Were it two from both, it would have `SEVERAL`.

    Where shapes don't fit, the same is done row by row. ``F.interpolate`` of ``(2, 3, 8, 8)`` makes
    ``(2, 3, 16, 16)``: all values of a row of that have the nearest code of the row before. If
    it has another number of rows, as a sum over them has, all have the nearest code of all.

    Args:
        codes: Those of each tensor, of any shapes.
        made: What was made of them.

    Returns:
        Codes of the shape of ``made``.
    """
    try:
        fits = torch.broadcast_shapes(*[of_one.shape for of_one in codes], made.shape) == made.shape
    except RuntimeError:
        fits = False
    if not fits:
        by_row = []
        for of_one in codes:
            rows = _nearest_of_rows(of_one)
            if made.dim() == 0 or len(rows) not in (1, len(made)):
                rows = _nearest_of_rows(rows.unsqueeze(0))
            by_row.append(_spread(rows, made))
        codes = by_row
    nearest = codes[0].expand(made.shape)
    for other in codes[1:]:
        nearest = _nearer(nearest, other)
    return nearest.clone()


def _nearer(first: Tensor, second: Tensor) -> Tensor:
    """The code of fewer layers, value by value; of two frames that are as near `SEVERAL`."""
    is_tie = (first // LAYER == second // LAYER) & (first != second)
    return torch.where(is_tie, first | SEVERAL, torch.minimum(first, second))


def _nearest_of_rows(codes: Tensor) -> Tensor:
    """The same over all values of each row along the first axis, ``(B,)``."""
    if codes.dim() == 0:
        codes = codes.unsqueeze(0)
    codes = codes.flatten(1) if codes.dim() > 1 else codes.unsqueeze(1)
    nearest = codes.amin(1)
    as_near = codes // LAYER == nearest.unsqueeze(1) // LAYER
    others = torch.where(as_near, codes, nearest.unsqueeze(1)).amax(1)
    return torch.where(others == nearest, nearest, nearest | SEVERAL)


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    """A code for each row as codes of all values of a tensor.

    Two rows, ``[a, b]``, like a tensor ``(2, 1, 3)`` become ``[[[a, a, a]], [[b, b, b]]]``; a row
    alone serves for all rows of the tensor.
    """
    if like.dim() == 0:
        return rows[0].clone()
    return rows.view(-1, *[1] * (like.dim() - 1)).expand(like.shape).clone()


def _frames(rows: Tensor) -> list[int]:
    """The frame of each row, or `CLIP`."""
    frames = []
    for code in rows.tolist():
        frame = code % LAYER
        frames.append(CLIP if frame == SEVERAL else frame)
    return frames


@contextmanager
def unwatched(network: nn.Module) -> Iterator[None]:
    """Within this context no hook of a network's modules and no mode of torch sees it run."""
    hooks = []
    for module in network.modules():
        hooks.append((module, module._forward_pre_hooks, module._forward_hooks))
        module._forward_pre_hooks = OrderedDict()
        module._forward_hooks = OrderedDict()
    try:
        with _disable_current_modes():
            yield
    finally:
        for module, before, after in hooks:
            module._forward_pre_hooks = before
            module._forward_hooks = after
