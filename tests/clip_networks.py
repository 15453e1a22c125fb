"""Small networks that take clips."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class MiddleFrame(nn.Module):
    """Makes the middle frame of a window, as EDVR does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, window):
        middle = window[:, window.shape[1] // 2]
        return F.interpolate(middle + self.conv(middle), scale_factor=4, mode="bicubic")


@ARCH_REGISTRY.register()
class CarriesOn(nn.Module):
    """Makes all frames of a clip, each with what it carries over from those before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, clip):
        state = torch.zeros_like(clip[:, 0])
        made = []
        for frame in clip.unbind(1):
            state = self.conv(torch.cat([frame, state], 1))
            made.append(F.interpolate(frame + state, scale_factor=4, mode="bicubic"))
        return torch.stack(made, 1)


@ARCH_REGISTRY.register()
class Recurrent(nn.Module):
    """Makes all frames of a clip of features that it carries on, as BasicVSR does."""

    def __init__(self, num_feat: int = 8) -> None:
        super().__init__()
        self.num_feat = num_feat
        self.first = nn.Conv2d(3 + num_feat, num_feat, 3, padding=1)
        self.body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.last = nn.Conv2d(num_feat, 3 * 4**2, 3, padding=1)

    def forward(self, clip):
        samples, _, _, height, width = clip.shape
        state = clip.new_zeros(samples, self.num_feat, height, width)
        made = []
        for frame in clip.unbind(1):
            state = self.body(self.first(torch.cat([frame, state], 1)).relu())
            added = F.pixel_shuffle(self.last(state.relu()), 4)
            made.append(F.interpolate(frame, scale_factor=4, mode="bicubic") + added)
        return torch.stack(made, 1)


@ARCH_REGISTRY.register()
class Demanding(CarriesOn):
    """Takes three frames at least, of 20 pixels along each side at least."""

    def forward(self, clip):
        if clip.shape[1] < 3 or min(clip.shape[-2:]) < 20:
            raise ValueError("the clip is too small")
        return super().forward(clip)


@ARCH_REGISTRY.register()
class Stacked(nn.Module):
    """Makes all frames of a clip of so many frames, its channels, and takes no other."""

    def __init__(self, num_frame: int = 5) -> None:
        super().__init__()
        self.num_frame = num_frame
        self.conv = nn.Conv2d(3 * num_frame, 3 * num_frame, 3, padding=1)

    def forward(self, clip):
        frames = clip.flatten(1, 2)
        made = F.interpolate(frames + self.conv(frames), scale_factor=4, mode="bicubic")
        return made.unflatten(1, (self.num_frame, 3))
