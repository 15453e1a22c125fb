"""Deformable convolution in torch, against a plain reference."""

import math

import pytest
import torch

from adabm_basicsr.quantization.layers import DeformableProduct, deform_conv2d

KINDS = {
    "plain": {"padding": 1},
    "no mask": {"padding": 1, "masked": False},
    "stride": {"stride": (2, 1), "padding": (0, 2)},
    "dilation": {"padding": 2, "dilation": 2},
    "groups": {"padding": 1, "groups": 2},
    "offset groups": {"padding": 1, "offset_groups": 4},
}


def sampled(x, row, column):
    """A value between pixels, by bilinear interpolation; zeros are outside."""
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < len(x) and 0 <= j < len(x[0]):
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * x[i][j]
    return total


def reference(x, offset, weight, bias, stride, padding, dilation, mask):
    """What the definition says, value by value."""
    outputs, inputs, rows, columns = weight.shape
    taps = rows * columns
    offset_groups = offset.shape[1] // (2 * taps)
    if mask is None:
        mask = torch.ones_like(offset[:, ::2])
    out = torch.zeros(len(x), outputs, *offset.shape[2:]).double()
    x_values, offsets, masks = x.tolist(), offset.tolist(), mask.tolist()
    weights = weight.flatten(2).tolist()
    for b, o, i, j in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        first = o // (outputs // (x.shape[1] // inputs)) * inputs
        total = float(bias[o])
        for c in range(first, first + inputs):
            group = c // (x.shape[1] // offset_groups)
            for k in range(taps):
                place = group * taps + k
                row = i * stride[0] - padding[0] + k // columns * dilation[0]
                column = j * stride[1] - padding[1] + k % columns * dilation[1]
                row += offsets[b][2 * place][i][j]
                column += offsets[b][2 * place + 1][i][j]
                value = sampled(x_values[b][c], row, column)
                total += weights[o][c - first][k] * value * masks[b][place][i][j]
        out[b, o, i, j] = total
    return out


def example(stride=1, padding=0, dilation=1, groups=1, offset_groups=1, masked=True):
    torch.manual_seed(0)
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    x = torch.randn(2, 4, 4, 5)
    weight = torch.randn(4, 4 // groups, 3, 2)
    shape = []
    for size, kernel, step, pad, dilate in zip(x.shape[2:], weight.shape[2:], *pairs, strict=True):
        shape.append((size + 2 * pad - dilate * (kernel - 1) - 1) // step + 1)
    offset = 2 * torch.randn(2, offset_groups * 12, *shape)
    offset[:, :, 0] = offset[:, :, 0].round()  # on pixels, where the slope jumps
    mask = torch.rand(2, offset_groups * 6, *shape) if masked else None
    return x, offset, weight, torch.randn(4), *pairs, mask


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition(kind):
    arguments = example(**KINDS[kind])
    expected = reference(*arguments)
    torch.testing.assert_close(deform_conv2d(*arguments).double(), expected, rtol=1e-5, atol=1e-5)
    x, offset, weight, bias, *settings, mask = arguments
    layer = DeformableProduct(weight, bias, *settings, groups=4 // weight.shape[1])
    torch.testing.assert_close(layer(x, offset, mask).double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_input_offsets_weight_and_mask():
    x, offset, weight, bias, *settings, mask = example(padding=1)
    offset[:, :, 0] += 0.3
    tensors = [t.double().requires_grad_() for t in (x, offset, weight, bias, mask)]

    def compute(x, offset, weight, bias, mask):
        return deform_conv2d(x, offset, weight, bias, *settings, mask)

    assert torch.autograd.gradcheck(compute, tensors, fast_mode=True)
