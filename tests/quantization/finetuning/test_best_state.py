"""The best of the states that fine-tuning goes through is kept, and no other."""

import pytest
import torch
from torch import nn

from adabm_basicsr import calibrate, finetune, quantize
from adabm_basicsr.quantization.finetuning.best_state import BestState
from adabm_basicsr.quantization.finetuning.finetune import FinetuneSettings

IMAGES = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
HARMFUL = {"activation_range": 1.0, "weight_correction": 3.0, "bias": 3.0}


def quantized(network, **options):
    return calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])


def error(net):
    with torch.no_grad():
        with net.full_precision():
            teacher = net(IMAGES)
        return float((net(IMAGES) - teacher).square().mean())


@pytest.mark.parametrize("best", [0, 1, 2, 3])
def test_the_values_of_the_smallest_loss_come_back(best):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 1))]
    state = BestState(parameters, total_iterations=3)
    for iteration in range(4):
        for parameter in parameters:
            parameter.data.fill_(iteration)
        state.offer(iteration, loss=1.0 + abs(iteration - best))
    state.restore()
    assert state.iteration == best
    for parameter in parameters:
        assert (parameter == best).all()


def test_of_equal_losses_the_earlier_state_is_kept():
    state = BestState([nn.Parameter(torch.zeros(1))], total_iterations=3)
    state.offer(0, 1.0)
    state.offer(3, 1.0)
    assert state.iteration == 0


def test_harmful_fine_tuning_leaves_the_calibrated_network(tiny):
    net = quantized(tiny, recipe="fast", w_bits=8, a_bits=8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    finetune(net, IMAGES.split(2), FinetuneSettings(learning_rates=HARMFUL))
    after = net.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_fine_tuning_that_helps_is_kept(tiny):
    net = quantized(tiny, recipe="fast", w_bits=4, a_bits=4)
    before = error(net)
    finetune(net, IMAGES.split(2) * 5)
    assert error(net) < 0.95 * before


def test_recipe_paper_keeps_its_last_state(tiny):
    net = quantized(tiny, recipe="paper")
    before = error(net)
    finetune(net, IMAGES.split(2), FinetuneSettings(learning_rates={"weight_range": 1.0}))
    assert error(net) > 2 * before


def test_nothing_to_fine_tune_on_changes_nothing(tiny):
    net = quantized(tiny, recipe="best")
    before = error(net)
    finetune(net, [])
    assert error(net) == before
