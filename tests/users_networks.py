"""Networks as users write them, with what quantization can't see through or can't follow.

Each is a small smooth network x2 whose body goes through `Body.between`, where the trouble is.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

FEATURES = 8


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Body(nn.Module):
    """One block: two convolutions around what `between` does."""

    def __init__(self):
        super().__init__()
        self.first = conv(FEATURES, FEATURES)
        self.last = conv(FEATURES, FEATURES)

    def forward(self, x):
        return x + self.last(self.between(self.first(x)))

    def between(self, x):
        return F.relu(x)


class Smooth(nn.Module):
    """Adds what its body finds to the enlarged image."""

    body = Body

    def __init__(self):
        super().__init__()
        self.head = conv(3, FEATURES)
        self.blocks = nn.ModuleList([self.body() for _ in range(3)])
        self.tail = conv(FEATURES, 12)

    def forward(self, x):
        return self.upsampled(x)

    def upsampled(self, x):
        features = self.head(x)
        for block in self.blocks:
            features = block(features)
        detail = F.pixel_shuffle(self.tail(features), 2)
        return F.interpolate(x, scale_factor=2.0) + 0.2 * detail


def network(name, body):
    """A class of `Smooth` networks whose blocks are of class ``body``."""
    return type(name, (Smooth,), {"body": body, "__module__": __name__})


# Gradients fail


class _Sigmoid(Body):
    def between(self, x):
        y = torch.sigmoid(x)
        y *= x
        return y


class _SigmoidTwin(Body):
    """Computes the same, not in place."""

    def between(self, x):
        return torch.sigmoid(x) * x


class _Tanh(Body):
    def between(self, x):
        y = torch.tanh(x)
        y += x
        return y


def _multiplied(x):
    return torch.sigmoid(x).mul_(x)


def _divided(x):
    return torch.sigmoid(x).div_(x.abs() + 1)


def _subtracted(x):
    return torch.tanh(x).sub_(x)


def _clamped(x):
    y = torch.tanh(x)
    product = y * x
    y.clamp_(-0.5, 0.5)
    return product + y


def _rectified(x):
    y = torch.tanh(x)
    square = y * y
    F.relu(y, inplace=True)
    return square + y


def _squashed(x):
    y = torch.tanh(x)
    square = y * y
    return square + y.sigmoid_()


def _half_multiplied(x):
    y = torch.sigmoid(x)
    y[:, : FEATURES // 2] *= x[:, FEATURES // 2 :]
    return y


def _cut_apart(x):
    first, second = torch.sigmoid(x).chunk(2, dim=1)
    first *= second
    return torch.cat([first, second], dim=1)


def _with_out(x):
    y = torch.sigmoid(x)
    return torch.mul(y, x, out=y)


def _with_room(x):
    room = torch.empty_like(x)
    torch.mul(torch.sigmoid(x), x, out=room)
    return room


def _half_multiplied_twin(x):
    y = torch.sigmoid(x)
    first, second = y.chunk(2, dim=1)
    return torch.cat([first * x[:, FEATURES // 2 :], second], dim=1)


def _cut_apart_twin(x):
    first, second = torch.sigmoid(x).chunk(2, dim=1)
    return torch.cat([first * second, second], dim=1)


# Ways to write in place what gradients need, each with the same not in place.
IN_PLACE = [
    (_multiplied, lambda x: torch.sigmoid(x) * x),
    (_divided, lambda x: torch.sigmoid(x) / (x.abs() + 1)),
    (_subtracted, lambda x: torch.tanh(x) - x),
    (_clamped, lambda x: torch.tanh(x) * x + torch.tanh(x).clamp(-0.5, 0.5)),
    (_rectified, lambda x: torch.tanh(x) ** 2 + F.relu(torch.tanh(x))),
    (_squashed, lambda x: torch.tanh(x) ** 2 + torch.tanh(x).sigmoid()),
    (_half_multiplied, _half_multiplied_twin),
    (_cut_apart, _cut_apart_twin),
    (_with_out, lambda x: torch.sigmoid(x) * x),
    (_with_room, lambda x: torch.sigmoid(x) * x),
]


class InPlaceOperators(Smooth):
    """Writes in place in each of these ways, one in each block."""

    way = 0

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()
        for ways in IN_PLACE:
            block = Body()
            block.between = ways[self.way]
            self.blocks.append(block)


class OperatorsTwin(InPlaceOperators):
    """Computes the same, not in place."""

    way = 1


class _NoGradInside(Body):
    def between(self, x):
        with torch.no_grad():
            weight = x.mean((2, 3), keepdim=True).sigmoid()
        return F.relu(x) * weight


class _InferenceInside(Body):
    def between(self, x):
        with torch.inference_mode():
            weight = x.mean((2, 3), keepdim=True).sigmoid()
        return F.relu(x) * weight


class _Numpy(Body):
    def between(self, x):
        return x * torch.from_numpy(np.tanh(x.numpy()))


class _DetachedNumpy(Body):
    def between(self, x):
        weight = torch.from_numpy(np.abs(x.detach().numpy()).mean((2, 3), keepdims=True))
        return F.relu(x) * weight


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x.sigmoid()


class _NoBackward(Body):
    def between(self, x):
        return _Swish.apply(x)


InPlaceSigmoid = network("InPlaceSigmoid", _Sigmoid)
SigmoidTwin = network("SigmoidTwin", _SigmoidTwin)
InPlaceTanh = network("InPlaceTanh", _Tanh)
PartNoGrad = network("PartNoGrad", _NoGradInside)
PartInference = network("PartInference", _InferenceInside)
WithNumpy = network("WithNumpy", _Numpy)
WithDetachedNumpy = network("WithDetachedNumpy", _DetachedNumpy)
NoBackward = network("NoBackward", _NoBackward)


class WholeNoGrad(Smooth):
    @torch.no_grad()
    def forward(self, x):
        return self.upsampled(x)


class WholeInference(Smooth):
    @torch.inference_mode()
    def forward(self, x):
        return self.upsampled(x)


# Other ways to run


class _Reentrant(Body):
    def between(self, x):
        return checkpoint(F.relu, x, use_reentrant=True)


class _ReentrantConv(Body):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=True)


class _CheckpointedConv(Body):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class _Autocast(Body):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class _AutocastOpen(Body):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class _HalfBetween(Body):
    def between(self, x):
        return F.relu(x.half()).float()


class _HalfLayer(Body):
    def __init__(self):
        super().__init__()
        self.last = self.last.bfloat16()

    def between(self, x):
        return F.relu(x).bfloat16()


class _Lazy(Body):
    def __init__(self):
        super().__init__()
        self.first = nn.LazyConv2d(FEATURES, 3, padding=1)


class _Slots(Body):
    __slots__ = ("strength",)

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "strength", 0.5)

    def between(self, x):
        return F.relu(x) * self.strength


class _Compiled(Body):
    def __init__(self):
        super().__init__()
        self.first = torch.compile(self.first, backend="eager")


Reentrant = network("Reentrant", _Reentrant)
ReentrantConv = network("ReentrantConv", _ReentrantConv)
CheckpointedConv = network("CheckpointedConv", _CheckpointedConv)
Autocast = network("Autocast", _Autocast)
AutocastOpen = network("AutocastOpen", _AutocastOpen)
HalfBetween = network("HalfBetween", _HalfBetween)
HalfLayer = network("HalfLayer", _HalfLayer)
LazyLayers = network("LazyLayers", _Lazy)
WithSlots = network("WithSlots", _Slots)
CompiledLayers = network("CompiledLayers", _Compiled)


class CompiledCall(Smooth):
    """Compiled as ``nn.Module.compile`` does it, and within."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.compile(backend="eager")
        self.compile(backend="eager")


class CompiledForward(Smooth):
    def __init__(self):
        super().__init__()
        self.forward = torch.compile(self.forward, backend="eager")


class _CompiledTwice(Body):
    def __init__(self):
        super().__init__()
        self.inner = torch.compile(
            nn.Sequential(torch.compile(conv(8, 8), backend="eager"), nn.ReLU()), backend="eager"
        )

    def between(self, x):
        return self.inner(x)


CompiledTwice = network("CompiledTwice", _CompiledTwice)


class HalfOutput(Smooth):
    def forward(self, x):
        return self.upsampled(x).half()


# Functions with parameters


def parameter(*shape):
    return nn.Parameter(0.2 * torch.randn(shape))


class FunctionalBody(nn.Module):
    """A convolution, a depthwise one and a linear layer, none of which is a layer."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = parameter(8, 8, 3, 3), parameter(8)
        self.depthwise = parameter(8, 1, 3, 3)
        self.linear = parameter(8, 8)

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.weight, self.bias, padding=1))
        y = F.conv2d(input=y, weight=self.depthwise, padding="same", dilation=2, groups=8)
        return x + F.linear(y.permute(0, 2, 3, 1), self.linear).permute(0, 3, 1, 2)


class OwnForward(nn.Conv2d):
    """Computes itself what its base computes."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, 1, self.padding)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = conv(3, 8), OwnForward(8, 12, 3, padding=1)
        self.blocks = nn.Sequential(FunctionalBody(), FunctionalBody())

    def forward(self, image):
        x = self.blocks(self.first(image))
        return F.pixel_shuffle(self.last(x), 2) + F.interpolate(image, scale_factor=2.0)


# Other outputs


class IntegerOutput(Smooth):
    def forward(self, x):
        return (self.upsampled(x) * 255).round().to(torch.uint8)


class GivesTuple(Smooth):
    def forward(self, x):
        return self.upsampled(x), x


class GivesList(Smooth):
    def forward(self, x):
        return [self.upsampled(x)]


class GivesDict(Smooth):
    def forward(self, x):
        return {"sr": self.upsampled(x)}


class GivesNone(Smooth):
    def forward(self, x):
        self.upsampled(x)


class GivesVector(Smooth):
    def forward(self, x):
        return self.upsampled(x).mean((2, 3))


class GivesVectors(Smooth):
    def forward(self, x):
        vector = self.upsampled(x).mean((2, 3))
        return vector, vector


class GivesNumberFirst(Smooth):
    def forward(self, x):
        return x.mean(), self.upsampled(x), x


# Mistakes


class _AttributeMistake(Body):
    def between(self, x):
        return self.activation(x)


class _AssertionMistake(Body):
    def between(self, x):
        assert x.shape[1] == 64, "64 features are needed"
        return x


AttributeMistake = network("AttributeMistake", _AttributeMistake)
AssertionMistake = network("AssertionMistake", _AssertionMistake)


class OddSizes(Smooth):
    """Reads past the end of images with an odd number of pixels above 25."""

    def forward(self, x):
        x = x.clone()
        if x.shape[2] > 25 and x.shape[2] % 2:
            x[:, :, 2 * (x.shape[2] // 2 + 1)] = 0
        return self.upsampled(x)


class ConstructorRaises(Smooth):
    def __init__(self):
        super().__init__()
        raise KeyError("depths")
