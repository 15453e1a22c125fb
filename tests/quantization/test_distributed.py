"""Several processes find, and learn, what one with all images does."""

import pytest
import torch
from conftest import TINY_EDSR
from faults import in_processes
from torch import nn

from adabm_basicsr.quantization.api import quantize
from adabm_basicsr.quantization.calibration import statistics
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.distributed import (
    from_first,
    map_shared,
    mean_over_processes,
    own_share,
    rank_and_size,
    set_mean_gradients,
    weighted_mean,
)
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings

CPU = torch.device("cpu")


def tiny_network():
    from basicsr.archs import build_network

    torch.manual_seed(0)
    return build_network(dict(TINY_EDSR))


def some_images(count):
    """From simple to complex."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)
    return 0.5 + contrast * (torch.rand(count, 3, 12, 12, generator=generator) - 0.5)


def square(item):
    return {"square": torch.tensor(item) ** 2}


def sums():
    rank = rank_and_size()[0]
    first = nn.Parameter(torch.ones(2))
    second = nn.Parameter(torch.ones(1))
    of_first = None
    if rank == 1:
        of_first = torch.tensor([4.0, 8.0]).double()
    set_mean_gradients([first, second], [of_first, None])
    value = torch.tensor(float(rank), requires_grad=True)
    mean = mean_over_processes(value)
    mean.backward()
    return {
        "gradients": [first.grad, second.grad],
        "mean": (mean.detach(), value.grad),
        "weighted": weighted_mean(float(rank), 1 + 2 * rank),
        "seed": from_first(rank + 7),
        "shares": (list(own_share(range(5))), list(own_share(range(1)))),
        # Fewer than the processes, and not a multiple of them.
        "squares": [map_shared(square, range(1), CPU), map_shared(square, range(5), CPU)],
    }


def test_sums_means_and_shares(tmp_path):
    for rank, found in enumerate(in_processes(2, tmp_path, sums)):
        first, second = found["gradients"]
        assert first.tolist() == [2, 4]
        # No process's images reached the second.
        assert second is None
        assert found["mean"] == (0.5, 1)
        assert found["weighted"] == 0.75
        assert found["seed"] == 7
        assert found["shares"] == ([[0, 2, 4], [1, 3]][rank], [0])
        for results in found["squares"]:
            squares = [int(result["square"]) for result in results]
            assert squares == [index**2 for index in range(len(results))]


def calibrated(recipe, observer):
    # Two images are a part.
    statistics.PIXELS_AT_ONCE = 2 * 12 * 12
    images = some_images(10)
    options = {"recipe": recipe, "observer": observer, "fully_quantized": True}
    net = quantize(tiny_network(), images[:1], **options)
    return calibrate(net, images.split(7))


def calibrated_state(recipe, observer):
    return calibrated(recipe, observer).state_dict()


@pytest.mark.parametrize(
    ("processes", "recipe", "observer"),
    [(2, "best", "minmax"), (4, "paper", "minmax"), (2, "static", "percentile")],
)
def test_calibration_is_that_of_one_process_to_the_bit(tmp_path, processes, recipe, observer):
    (tmp_path / "one").mkdir()
    one = in_processes(1, tmp_path / "one", calibrated_state, recipe, observer)[0]
    for several in in_processes(processes, tmp_path, calibrated_state, recipe, observer):
        assert several.keys() == one.keys()
        assert all(torch.equal(several[key], one[key]) for key in one)


def finetuned():
    """State after a few iterations of the recipe paper in double precision, and all losses."""
    net = calibrated("paper", "minmax").double()
    rank, size = rank_and_size()
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=1, total_iterations=6)
    losses = []
    for iteration, batch in enumerate(some_images(24).double().split(4), start=1):
        losses.append(tuner.step(batch[rank::size], iteration))
    return net.state_dict(), losses


def learned(recipe):
    """State after some iterations in single precision, where a rounding may fall the other way."""
    net = calibrated(recipe, "minmax")
    rank, size = rank_and_size()
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=3, total_iterations=12)
    for iteration, batch in enumerate([*some_images(48).split(8)] * 2, start=1):
        tuner.step(batch.chunk(size)[rank], iteration)
    return net.state_dict()


@pytest.mark.parametrize(("processes", "recipe"), [(2, "paper"), (4, "best")])
def test_learning_is_that_of_one_process_to_the_bit(tmp_path, processes, recipe):
    (tmp_path / "one").mkdir()
    one = in_processes(1, tmp_path / "one", learned, recipe)[0]
    for several in in_processes(processes, tmp_path, learned, recipe):
        assert all(torch.equal(several[key], one[key]) for key in one)


def test_learning_is_that_of_one_process_with_the_whole_batch(tmp_path):
    (tmp_path / "one").mkdir()
    state, losses = in_processes(1, tmp_path / "one", finetuned)[0]
    for other, other_losses in in_processes(2, tmp_path, finetuned):
        torch.testing.assert_close(other_losses, losses, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other, state, rtol=1e-9, atol=1e-12)
    assert any(loss["l_bit"] > 0 for loss in losses)
    assert all(loss["l_feat"] > 0 for loss in losses)
