"""Networks that a traced graph can't stand for are refused, whatever their Python code does."""

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
    """Reads a parameter, branches by size, and draws random numbers in training alone."""

    def forward(self, x):
        x = nn.functional.rrelu(x, training=False)
        return super().forward(x) * float(self.scale) + (0 if x.shape[2] > 16 else 0.01)


def export(network, folder):
    torch.manual_seed(0)
    net = calibrate(quantize(network(), IMAGES[:1]), [IMAGES])
    save_onnx(net, folder / "net.onnx")


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


def test_parameters_and_sizes_may_be_read(tmp_path):
    export(Harmless, tmp_path)
    assert (tmp_path / "net.onnx").is_file()
