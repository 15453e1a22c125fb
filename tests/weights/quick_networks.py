"""Networks that are trained here: BasicSR's, small, and quick to train on a CPU.

An option file names this module in ``custom_imports``. What is trained fits BasicSR's own networks.
"""

from __future__ import annotations

import torch
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.archs.edvr_arch import EDVR
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn


@ARCH_REGISTRY.register()
class QuickBasicVSR(BasicVSR):
    """BasicVSR in bfloat16, whose flow network has the same weights on all of its six levels.

    Flow is then learnt in less time, and the levels take the room of one in a file.
    """

    def __init__(self, num_feat: int, num_block: int) -> None:
        super().__init__(num_feat=num_feat, num_block=num_block)
        levels = self.spynet.basic_module
        self.spynet.basic_module = nn.ModuleList([levels[0]] * len(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve clips ``(B, T, C, H, W)``."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@ARCH_REGISTRY.register()
class QuickEDVR(EDVR):
    """EDVR in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve the middle frame of windows ``(B, T, C, H, W)``."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()
