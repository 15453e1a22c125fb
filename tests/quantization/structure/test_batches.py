"""Layers whose input isn't a batch's samples one after another have bits that no image changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.api import quantize
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.finetuning.finetune import finetune
from adabm_basicsr.quantization.structure.batches import find_unbatched
from adabm_basicsr.quantization.structure.roles import find_structure

EXAMPLE = torch.full((1, 3, 16, 16), 0.5)


class Block(nn.Module):
    """Adds what a linear layer makes of a table with a row for each position or window."""

    def __init__(self, rows):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.of_table, self.after = nn.Linear(2, 8), nn.Linear(8, 8)
        self.register_buffer("table", torch.rand(rows, 2))

    def forward(self, x):
        positions = self.after(F.relu(self.of_table(self.table))).mean(0)
        return x + self.second(F.relu(self.first(x) + positions.view(1, -1, 1, 1)))


class Windows(nn.Module):
    """Works on rows of the images: sample after sample, or the first of all samples first."""

    def __init__(self, samples_first):
        super().__init__()
        self.samples_first = samples_first
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        rows = x.permute(0, 2, 3, 1) if self.samples_first else x.permute(2, 0, 3, 1)
        out = self.linear(rows.flatten(0, 1)).view_as(rows)
        return x + (out.permute(0, 3, 1, 2) if self.samples_first else out.permute(1, 3, 0, 2))


def network(*blocks):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(*blocks),
        nn.Conv2d(8, 12, 3),
        nn.PixelShuffle(2),
    )


def batch(count, seed=0):
    """From dark and simple to bright and complex."""
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return images * torch.linspace(0.02, 1, count).view(-1, 1, 1, 1)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_table_is_found(rows):
    structure = find_structure(network(Block(rows), Block(rows)), EXAMPLE)
    assert structure.unbatched == {
        f"1.{i}.{name}" for i in range(2) for name in ("of_table", "after")
    }


def test_order_of_windows_is_found():
    assert find_structure(network(Windows(True), Windows(True)), EXAMPLE).unbatched == set()
    assert find_structure(network(Windows(False), Windows(True)), EXAMPLE).unbatched == {
        "1.0.linear"
    }


class Adding(nn.Module):
    """Adds what a layer makes of something of its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + self.conv(self.part(x))


class Details(Adding):
    """What a blur takes away: on a flat image nothing but rounding errors."""

    def part(self, x):
        return x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)


class Normalised(Adding):
    """Divided by its deviation, which a flat image hasn't."""

    def part(self, x):
        return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


class Noisy(Adding):
    def part(self, x):
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("kind", [Details, Normalised, Noisy])
def test_ordinary_layers_follow_samples(kind):
    assert find_structure(network(kind(), kind()), EXAMPLE).unbatched == set()


def test_random_numbers_go_on_as_if_nothing_was_looked_for():
    net = network(Noisy())
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    find_unbatched(net, EXAMPLE)
    assert torch.equal(torch.rand(1), expected)


def test_what_is_found_does_not_depend_on_weights():
    class Silent(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(8, 8, 1), Windows(False))

    fresh, trained = network(Silent(), Silent()), network(Silent(), Silent())
    for block in fresh[1]:
        nn.init.zeros_(block[0].weight)
        nn.init.zeros_(block[0].bias)
    assert (
        find_structure(fresh, EXAMPLE).unbatched
        == find_structure(trained, EXAMPLE).unbatched
        != set()
    )


def test_layers_that_are_called_by_keyword_or_on_nothing():
    class Odd(Block):
        def forward(self, x):
            nothing = self.after(self.after.weight[:0])
            return x + self.of_table(input=self.table).mean(0).view(1, -1, 1, 1) + nothing.sum()

    net = quantize(network(Odd(64)), EXAMPLE)
    assert net.structure.unbatched == {"1.0.of_table"}
    finetune(calibrate(net, [batch(4)]), [batch(2)] * 3)
    assert net(batch(2)).isfinite().all()


def test_network_that_takes_one_image_at_a_time():
    class Single(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(1, 3, *x.shape[2:]))

    with pytest.raises(
        AdaBMError,
        match=r"^Single cannot be run on an image of shape \(2, 3, 16, 16\): RuntimeError: shape",
    ):
        find_structure(Single(network(Block(4))), EXAMPLE)
    assert (
        find_structure(
            Single(network(Block(4))), EXAMPLE, QuantizationConfig(recipe="static")
        ).unbatched
        == set()
    )


@pytest.mark.parametrize("recipe", ["best", "fast", "paper"])
@pytest.mark.parametrize(("kind", "argument"), [(Block, 1), (Block, 64), (Windows, False)])
def test_image_gets_the_same_in_a_batch_as_alone(recipe, kind, argument):
    net = quantize(network(kind(argument), kind(argument)), EXAMPLE, recipe=recipe)
    calibrate(net, [batch(8)])
    finetune(net, [batch(2, seed) for seed in range(3)], iterations_per_epoch=1)
    net.double()  # in float32 a batch may round a value the other way
    images = batch(8, seed=9).double()
    with torch.no_grad():
        alone = torch.cat([net(image) for image in images.split(1)])
        torch.testing.assert_close(net(images), alone, rtol=0, atol=1e-5)
    adaptive = {name for name, plan in net.plan.layers.items() if plan.adaptive}
    assert not adaptive & net.structure.unbatched
