"""A recurrent network as a graph of one step, which a program runs frame by frame.

BasicVSR goes through a clip twice: backwards from the last frame, then forwards from the first. In
each direction a frame's state is made of the frame and its neighbour's state, which is moved by the
flow between the two; the frame is made of both its states. One step does both for one frame::

    image, next, next_state                          -> backward_state
    image, previous, previous_state, backward_state  -> forward_state, output

A frame without a neighbour is its own, and the state of that is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.archs.basicvsr_arch import BasicVSR
from basicsr.archs.spynet_arch import SpyNet
from torch import Tensor, nn

from adabm_basicsr.deployment.onnx.level import IMAGE, OUTPUT, WHOLE, Part
from adabm_basicsr.quantization.structure.clips import Clips

NEXT = "next"
NEXT_STATE = "next_state"
PREVIOUS = "previous"
PREVIOUS_STATE = "previous_state"
BACKWARD_STATE = "backward_state"
FORWARD_STATE = "forward_state"
SCALE = 4
FLOW_MULTIPLE = 32  # pixels; SpyNet halves frames five times

BACKWARD = Part((IMAGE, NEXT, NEXT_STATE), (BACKWARD_STATE,))
FORWARD = Part((IMAGE, PREVIOUS, PREVIOUS_STATE, BACKWARD_STATE), (OUTPUT, FORWARD_STATE))
STEP = Part(
    (IMAGE, NEXT, NEXT_STATE, PREVIOUS, PREVIOUS_STATE), (OUTPUT, BACKWARD_STATE, FORWARD_STATE)
)


def graph_part(clips: Clips | None) -> Part:
    """What the graph of a network takes and makes, beside the level.

    Args:
        clips: Clips that it takes; None of one that takes images.
    """
    is_recurrent = clips is not None and clips.any_length
    return STEP if is_recurrent else WHOLE


def has_steps(network: nn.Module) -> bool:
    """Whether `BasicVSRStep` makes what a network does; a subclass may compute something else."""
    return (
        isinstance(network, BasicVSR)
        and type(network).forward is BasicVSR.forward
        and type(network).get_flow is BasicVSR.get_flow
        and type(network.spynet) is SpyNet
    )


class BasicVSRStep(nn.Module):
    """One step of a BasicVSR, of frozen layers or not.

    Args:
        network: The network; its estimation of flow is replaced by one whose sizes can be traced.

    Attributes:
        channels: Of each input, in the order of those of `STEP`.
    """

    def __init__(self, network: BasicVSR) -> None:
        super().__init__()
        self.network = network
        self.flow = TraceableSpyNet(network.spynet)
        colours = 3
        self.channels = (colours, colours, network.num_feat, colours, network.num_feat)

    def forward(
        self,
        image: Tensor,
        after: Tensor,
        after_state: Tensor,
        before: Tensor,
        before_state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make a frame.

        Args:
            image: The frame, ``(1, 3, H, W)`` in 0..1.
            after: The next frame.
            after_state: Its backward state, ``(1, C, H, W)``.
            before: The frame before.
            before_state: Its forward state.

        Returns:
            The frame, ``(1, 3, 4H, 4W)``, its backward state and its forward state.
        """
        backward = self._state(self.network.backward_trunk, image, after, after_state)
        forward = self._state(self.network.forward_trunk, image, before, before_state)
        return self._frame(image, backward, forward), backward, forward

    def _state(self, trunk: nn.Module, image: Tensor, neighbour: Tensor, state: Tensor) -> Tensor:
        moved = warp(state, self.flow(image, neighbour), "zeros")
        made: Tensor = trunk(torch.cat([image, moved], dim=1))
        return made

    def _frame(self, image: Tensor, backward: Tensor, forward: Tensor) -> Tensor:
        net = self.network
        out = net.lrelu(net.fusion(torch.cat([backward, forward], dim=1)))
        out = net.lrelu(net.pixel_shuffle(net.upconv1(out)))
        out = net.lrelu(net.pixel_shuffle(net.upconv2(out)))
        out = net.conv_last(net.lrelu(net.conv_hr(out)))
        enlarged: Tensor = F.interpolate(image, scale_factor=SCALE, mode="bilinear")
        return out + enlarged


class TraceableSpyNet(nn.Module):
    """What a `SpyNet` computes, in operations on sizes that a graph can follow.

    Args:
        network: The network, whose layers it takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: SpyNet) -> None:
        super().__init__()
        self.layers = network.basic_module
        self.register_buffer("mean", network.mean)
        self.register_buffer("std", network.std)

    def forward(self, image: Tensor, neighbour: Tensor) -> Tensor:
        """Where each pixel lies in the neighbour: ``(B, 3, H, W)`` to ``(B, 2, H, W)``, in pixels.

        The first channel is to the right, the second down.
        """
        height, width = image.shape[2:]
        full_height = height + -height % FLOW_MULTIPLE
        full_width = width + -width % FLOW_MULTIPLE
        images = self._pyramid(image, full_height, full_width)
        neighbours = self._pyramid(neighbour, full_height, full_width)
        flow = images[0][:, :2] * 0
        for number, layer in enumerate(self.layers):
            if number > 0:
                enlarged = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
                flow = 2.0 * enlarged
            moved = warp(neighbours[number], flow, "border")
            flow = flow + layer(torch.cat([images[number], moved, flow], dim=1))
        flow = F.interpolate(flow, size=(height, width), mode="bilinear")
        to_the_right = flow[:, :1] * (width / full_width)
        down = flow[:, 1:] * (height / full_height)
        return torch.cat([to_the_right, down], dim=1)

    def _pyramid(self, image: Tensor, height: int, width: int) -> list[Tensor]:
        """The image at this size and halved again and again, an image for each layer.

        The smallest comes first.
        """
        image = F.interpolate(image, size=(height, width), mode="bilinear")
        sizes = [(image - self.mean) / self.std]
        while len(sizes) < len(self.layers):
            sizes.insert(0, F.avg_pool2d(sizes[0], 2))
        return sizes


def warp(x: Tensor, flow: Tensor, padding: str) -> Tensor:
    """Values at other places of an image.

    Args:
        x: ``(B, C, H, W)``.
        flow: How far to the right and down each lies, in pixels, ``(B, 2, H, W)``.
        padding: What is outside of the image, see `torch.nn.functional.grid_sample`.
    """
    height, width = x.shape[2:]
    columns = torch.arange(width).to(x) + flow[:, 0]
    rows = torch.arange(height).to(x).unsqueeze(1) + flow[:, 1]
    # An image of one pixel has no distance.
    last_column = torch.as_tensor(width - 1).clamp(min=1)
    last_row = torch.as_tensor(height - 1).clamp(min=1)
    places = torch.stack([2 * columns / last_column - 1, 2 * rows / last_row - 1], dim=3)
    return F.grid_sample(x, places, padding_mode=padding, align_corners=True)
