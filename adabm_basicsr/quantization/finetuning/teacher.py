"""What the full-precision network makes of calibration patches, computed once for patches that come back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.finetuning.parts import join, run_in_parts
from adabm_basicsr.quantization.network import Details, QuantizedNetwork

MAX_BYTES = 1 << 30  # of outputs and features that are kept; what doesn't fit is computed anew


class Teacher:
    """The full-precision network, with a memory for patches that are told apart by a key.

    Such patches are run one by one: a convolution rounds otherwise in a batch of one than in a larger one, and what is
    learned must not depend on when a run was interrupted, with which its memory begins anew.

    Args:
        net: The quantized network, whose quantizers are switched off for the teacher's passes.

    Attributes:
        kept_bytes: Size of what is kept, at most `MAX_BYTES`.
    """

    def __init__(self, net: QuantizedNetwork) -> None:
        self.net = net
        self._kept: dict[int, tuple[Tensor, ...]] = {}  # output and features of each patch
        self._separable: bool | None = None  # whether all of these have a part for each sample
        self.kept_bytes = 0

    @torch.no_grad()
    def __call__(
        self, images: Tensor, forward: nn.Module, keys: Sequence[int] | None = None
    ) -> Details:
        """Output and features for a batch; blocks' outputs have the samples of the batch along their first axis.

        Args:
            images: ``(B, C, H, W)`` in 0..1.
            forward: What to call instead of the network itself, such as a ``DataParallel`` wrapper of it.
            keys: A key for each image that comes back unchanged; None where images don't.
        """
        if keys is None or not self._is_separable(images, forward):
            return self._compute(images, forward)
        patches = []
        for key, image in zip(keys, images.split(1)):
            patch = self._kept.get(key) or _tensors(self._compute(image, forward))
            patches.append(patch)
            self._keep(key, patch)
        output, *features = (torch.cat(parts) for parts in zip(*patches))
        return Details(output, output.new_empty(0), features)

    def _is_separable(self, images: Tensor, forward: nn.Module) -> bool:
        """Whether every block has an output for each sample; found with the first batch."""
        if self._separable is None:
            whole, one = (_tensors(self._compute(x, forward)) for x in (images, images[:1]))
            self._separable = all(len(w) == len(images) * len(o) for w, o in zip(whole, one))
        return self._separable

    def _compute(self, images: Tensor, forward: nn.Module) -> Details:
        with self.net.full_precision():
            return join(run_in_parts(forward, images))

    def _keep(self, key: int, patch: tuple[Tensor, ...]) -> None:
        size = sum(t.numel() * t.element_size() for t in patch)
        if key not in self._kept and self.kept_bytes + size <= MAX_BYTES:
            self.kept_bytes += size
            self._kept[key] = patch

    def __contains__(self, key: int) -> bool:
        """Whether the patch of that key is kept."""
        return key in self._kept

    def forget(self) -> None:
        """Free what is kept."""
        self._kept.clear()
        self.kept_bytes = 0


def _tensors(details: Details) -> tuple[Tensor, ...]:
    return details.output, *details.features
