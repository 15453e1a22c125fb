"""What the full-precision network makes of calibration patches, computed once for each patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.finetuning.parts import join, run_in_parts
from adabm_basicsr.quantization.network import Details, QuantizedNetwork

MAX_BYTES = 1 << 30  # of outputs and features that are kept; what doesn't fit is computed anew


class Teacher:
    """The full-precision network, with a memory for patches that come back under a key.

    Such patches are run one by one. A convolution rounds otherwise in a batch of one than in a
    larger one, and what is learned must not depend on when a run was interrupted, with which its
    memory begins anew.

    Args:
        net: The quantized network, whose quantizers are switched off for the teacher's passes.

    Attributes:
        kept_bytes: Size of what is kept, at most `MAX_BYTES`.
    """

    def __init__(self, net: QuantizedNetwork) -> None:
        self.net = net
        self.kept_bytes = 0
        # Output and features of each patch.
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        # Whether all of these have a part for each sample; None before the first batch.
        self._separable: bool | None = None

    @torch.no_grad()
    def __call__(
        self, images: Tensor, forward: nn.Module, keys: Sequence[int] | None = None
    ) -> Details:
        """Output and features for a batch.

        Args:
            images: ``(B, C, H, W)`` in 0..1.
            forward: What to call instead of the network itself, such as a ``DataParallel`` wrapper
                of it.
            keys: A key for each image that comes back unchanged; None where images don't.

        Returns:
            Details without bits; blocks' outputs have the samples of the batch along their first
            axis.
        """
        if keys is None or not self._is_separable(images, forward):
            return self._compute(images, forward)
        patches = []
        for key, image in zip(keys, images.split(1), strict=True):
            patch = self._kept.get(key)
            if patch is None:
                patch = _tensors(self._compute(image, forward))
                self._keep(key, patch)
            patches.append(patch)
        joined = [torch.cat(of_patches) for of_patches in zip(*patches, strict=False)]
        output, *features = joined
        no_bits = output.new_empty(0)
        return Details(output, no_bits, features)

    def _is_separable(self, images: Tensor, forward: nn.Module) -> bool:
        """Whether every block has an output for each sample; found with the first batch."""
        if self._separable is None:
            of_all = _tensors(self._compute(images, forward))
            of_one = _tensors(self._compute(images[:1], forward))
            self._separable = True
            for whole, one in zip(of_all, of_one, strict=False):
                if len(whole) != len(images) * len(one):
                    self._separable = False
        return self._separable

    def _compute(self, images: Tensor, forward: nn.Module) -> Details:
        with self.net.full_precision():
            return join(run_in_parts(forward, images))

    def _keep(self, key: int, patch: tuple[Tensor, ...]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in patch)
        if self.kept_bytes + size <= MAX_BYTES:
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
