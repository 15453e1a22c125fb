"""Networks that a traced graph can't stand for are refused, whatever their Python code does."""

import math

import pytest
import torch
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, quantize, save_onnx

IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.last(torch.relu(self.body(self.first(x))))


class Branch(Plain):
    def forward(self, x):
        return super().forward(x) + (0 if x.mean() > 0.4 else 0.01)


class Number(Plain):
    def forward(self, x):
        return super().forward(x) * float(x.mean())


class Noise(Plain):
    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn_like(x)


class Harmless(Plain):
    """Reads a parameter, branches by channels, and draws random numbers in training alone."""

    def forward(self, x):
        x = nn.functional.rrelu(x, training=False)
        return super().forward(x) * float(self.scale) + (0 if x.shape[1] == 3 else 0.01)


class Threshold(Plain):
    def forward(self, x):
        return super().forward(x) * (0.9 if x.shape[-1] < 50 else 1.1)


class Divided(Plain):
    def forward(self, x):
        return super().forward(x) / math.sqrt(x.shape[-1])


class Loop(Plain):
    def forward(self, x):
        rows = [row + 0.01 * (index % 7) for index, row in enumerate(x.unbind(2))]
        return super().forward(torch.stack(rows, 2))


class Cached(Plain):
    """Keeps a mask of the size of its first image, and makes another for any other."""

    mask = None

    def forward(self, x):
        if self.mask is None or self.mask.shape != x.shape[2:]:
            self.mask = torch.linspace(0, 1, x.shape[2]).view(-1, 1).repeat(1, x.shape[3])
        return super().forward(x) * self.mask


class Windows(Plain):
    """Shapes that follow the image, as windows of attention have them."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height * width).mean(2, keepdim=True) + x.flatten(2)
        return super().forward(x.view(batch, channels, height, width))


class AcrossChannels(Plain):
    """Attention of channels to channels, whose scale is the number of pixels."""

    def forward(self, x):
        y = x.flatten(2).unsqueeze(1)
        y = nn.functional.scaled_dot_product_attention(y, y, y)
        return super().forward(x + y.view_as(x))


def export(network, folder, **options):
    torch.manual_seed(0)
    net = calibrate(quantize(network(), IMAGES[:1], recipe="static", **options), [IMAGES])
    save_onnx(net, folder / "net.onnx")


@pytest.mark.parametrize("network", [Threshold, Divided, Loop, Cached])
def test_code_that_depends_on_the_size_is_refused(network, tmp_path):
    with pytest.raises(
        AdaBMError,
        match=f"{network.__name__} can't be written as ONNX: its Python code makes something of "
        "the image's size, which a graph of 64x64 pixels would keep for ",
    ):
        export(network, tmp_path)
    assert not list(tmp_path.iterdir())


class Numpy(Plain):
    def forward(self, x):
        return super().forward(x) * torch.from_numpy(x.numpy().mean((2, 3), keepdims=True))


class Missing(Plain):
    """Fails at the size of the trial alone."""

    def forward(self, x):
        assert x.shape[2] < 50, "too large"
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "reason"), [(Numpy, "NumPy computes a part of it"), (Missing, "too large")]
)
def test_code_that_fails_in_a_trace_is_refused_with_its_place(network, reason, tmp_path):
    line = rf"the network can't be written as ONNX: .*{reason}.*test_traceable.py:\d+\)"
    with pytest.raises(AdaBMError, match=line):
        export(network, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", [Branch, Number])
def test_code_that_depends_on_the_image_is_refused(network, tmp_path):
    with pytest.raises(
        AdaBMError, match=f"{network.__name__} can't be written as ONNX: its Python code depends"
    ):
        export(network, tmp_path)
    assert not list(tmp_path.iterdir())


def test_random_numbers_are_refused(tmp_path):
    with pytest.raises(AdaBMError, match="Noise can't be written as ONNX: it draws random numbers"):
        export(Noise, tmp_path)


@pytest.mark.parametrize("network", [Harmless, Windows, AcrossChannels])
def test_parameters_and_shapes_may_be_read(network, tmp_path):
    export(network, tmp_path, attention_products=True)
    assert (tmp_path / "net.onnx").is_file()


class Multihead(Plain):
    """Attention within columns; the exporter keeps the height that it traced."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x):
        columns = x.permute(0, 3, 2, 1)
        y = columns.flatten(0, 1)
        y, _ = self.attention(y, y, y, need_weights=False)
        return super().forward(x + y.view_as(columns).permute(0, 3, 2, 1))


def test_a_graph_that_keeps_the_size_that_was_traced_is_refused(tmp_path):
    with pytest.raises(
        AdaBMError, match="its graph, traced with 64x64 pixels, doesn't do for 19x13"
    ):
        export(Multihead, tmp_path)
    assert not list(tmp_path.iterdir())


class ViewOfWritten(Plain):
    """Goes on with a view of what is written to afterwards, which a graph keeps as it was."""

    def forward(self, x):
        y = self.first(x)
        view = y[:, :4]
        y += 1
        return self.last(torch.cat([view, y[:, 4:]], 1))


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    with pytest.raises(AdaBMError, match="its graph, traced with 64x64 pixels, doesn't do for"):
        export(ViewOfWritten, tmp_path, fully_quantized=True)
    assert not list(tmp_path.iterdir())


class Transposed(Plain):
    """ONNX's own program runs transposed convolutions in groups wrongly."""

    def __init__(self):
        super().__init__()
        self.body = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4)


def test_what_the_program_of_onnx_lacks_is_no_reason_to_refuse(tmp_path):
    net = calibrate(quantize(Transposed(), IMAGES[:1]), [IMAGES])
    save_onnx(net, tmp_path / "net.onnx")
