"""Which frame each call of a layer belongs to."""

import pytest
import torch
from torch import nn

from adabm_basicsr.quantization.structure.flow import register_flow_estimation
from adabm_basicsr.quantization.structure.frames import CLIP, find_frames


@register_flow_estimation
class Flow(nn.Module):
    """Takes two frames, without a layer in between."""

    def forward(self, one, other):
        return (one - other).mean(1, keepdim=True)


class Recurrent(nn.Module):
    """Goes through a clip backwards and forwards, with all that such networks do to frames."""

    def __init__(self):
        super().__init__()
        self.flow = Flow()
        self.encode = nn.Conv2d(3, 4, 3, padding=1)
        self.backward_step = nn.Conv2d(8, 4, 3, padding=1)
        self.forward_step = nn.Conv2d(12, 4, 3, padding=1)
        self.align = nn.Conv2d(8, 4, 1)
        self.over_frames = nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0))
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, clip):
        b, t, c, h, w = clip.shape
        features = torch.relu_(self.encode(clip.view(-1, c, h, w))).view(b, t, -1, h, w)
        features = list(features.unbind(1))
        state, backward = torch.zeros_like(features[0]), []
        for i in reversed(range(t)):
            if i < t - 1:
                state = state * self.flow(clip[:, i], clip[:, i + 1])
            state = self.backward_step(torch.cat([features[i], state], 1))
            backward.insert(0, state)
        outputs, aligned = [], []
        for i in range(t):
            state = self.forward_step(torch.cat([state, backward[i], features[i]], dim=1))
            aligned.append(self.align(torch.cat([features[0], features[i]], 1)))
            outputs.append(state)
        fused = self.over_frames(torch.stack(aligned, 2))
        both = torch.cat([torch.stack(outputs, 2), fused], 1).transpose(1, 2)
        return self.last(both.reshape(b * t, -1, h, w)).view(b, t, c, h, w)


def test_frames_of_a_recurrent_network():
    network = Recurrent()
    layers = {name: module for name, module in network.named_children() if name != "flow"}
    found = find_frames(network, layers, torch.rand(1, 4, 3, 8, 8))
    assert found == {
        "encode": [[0, 1, 2, 3]],
        "backward_step": [[3], [2], [1], [0]],
        "forward_step": [[0], [1], [2], [3]],
        "align": [[0], [CLIP], [CLIP], [CLIP]],
        "over_frames": [[CLIP]],
        "last": [[0, 1, 2, 3]],
    }
    assert not any(module._forward_hooks for module in network.modules())


class Windowed(nn.Module):
    """Frames as channels."""

    def __init__(self):
        super().__init__()
        self.fuse = nn.Conv2d(9, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, clip):
        return self.last(self.fuse(clip.flatten(1, 2))) + clip[:, 1]


def test_a_layer_that_sees_several_frames_belongs_to_the_clip():
    network = Windowed()
    found = find_frames(network, dict(network.named_children()), torch.rand(1, 3, 3, 8, 8))
    assert found == {"fuse": [[CLIP]], "last": [[CLIP]]}


class ReshapedInPlace(nn.Module):
    """Gives features another shape without making another tensor of them, as DUF does."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, clip):
        features = self.encode(clip[:, 1]).unsqueeze_(2)
        features.transpose_(3, 4)
        features.squeeze_(2)
        return self.last(features + features)


def test_shapes_change_in_place():
    network = ReshapedInPlace()
    found = find_frames(network, dict(network.named_children()), torch.rand(1, 3, 3, 8, 6))
    assert found == {"encode": [[1]], "last": [[1]]}


class WithNeighbours(nn.Module):
    """Runs each frame with what its difference from the next one says, if there is a next one."""

    def __init__(self):
        super().__init__()
        self.flow = Flow()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, clip):
        shape = clip[:, 1:].shape
        before = clip[:, :-1].reshape(-1, *shape[2:])
        after = clip[:, 1:].reshape(-1, *shape[2:])
        flow = self.flow(before, after).view(shape[0], shape[1], 1, *shape[3:])
        made = clip.clone()
        made[:, 1:] += flow
        return self.last(made.flatten(0, 1)).view(clip.shape)


@pytest.mark.parametrize("frames", [1, 3])
def test_frames_are_found_in_inference_mode(frames):
    """A clip of one frame leads to tensors without values."""
    network = WithNeighbours()
    with torch.inference_mode():
        found = find_frames(network, {"last": network.last}, torch.rand(1, frames, 3, 8, 6))
    assert found == {"last": [list(range(frames))]}
