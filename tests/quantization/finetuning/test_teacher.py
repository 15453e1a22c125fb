"""The teacher computes once what comes back."""

import pytest
import torch

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.finetuning import teacher as module
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.finetuning.teacher import Teacher

IMAGES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net(tiny):
    return calibrate(quantize(tiny, IMAGES[:1], recipe="best", w_bits=4, a_bits=4), [IMAGES])


class Counting(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, images, details):
        self.images += len(images)
        return self.net(images, details)


def test_known_patches_are_not_computed_again_in_any_order(net):
    teacher, forward = Teacher(net), Counting(net)
    expected = teacher(IMAGES, forward)
    assert forward.images == 4
    teacher(IMAGES[:2], forward, [7, 3])
    # The first batch shows whether blocks have an output for each sample.
    assert forward.images == 4 + (2 + 1) + 2
    teacher(IMAGES[2:], forward, [5, 4])
    found = teacher(IMAGES[[2, 0, 3, 1]], forward, [5, 7, 4, 3])
    assert forward.images == 4 + 3 + 4
    # Batches of one round otherwise.
    torch.testing.assert_close(found.output, expected.output[[2, 0, 3, 1]])
    assert len(found.features) == len(expected.features) > 0
    for kept, computed in zip(found.features, expected.features, strict=True):
        torch.testing.assert_close(kept, computed[[2, 0, 3, 1]], atol=1e-4, rtol=1e-4)
    teacher(IMAGES[:2], forward, [7, 8])
    # Only what is new.
    assert forward.images == 4 + 3 + 4 + 1
    assert 8 in teacher
    assert 9 not in teacher
    teacher.forget()
    assert 8 not in teacher
    assert teacher.kept_bytes == 0


def test_what_does_not_fit_is_computed_anew(net, monkeypatch):
    expected = Teacher(net)(IMAGES, net)
    size = 4 * sum(t[0].numel() for t in (expected.output, *expected.features))
    monkeypatch.setattr(module, "MAX_BYTES", 3 * size)
    teacher, forward = Teacher(net), Counting(net)
    for _ in range(3):
        found = teacher(IMAGES, forward, range(4))
    assert forward.images == (4 + 1) + 4 + 1 + 1
    assert teacher.kept_bytes == 3 * size
    torch.testing.assert_close(found.output, expected.output)


def test_features_that_belong_to_no_sample_are_not_kept(net):
    teacher = Teacher(net)

    def forward(images, details):
        return net(images, details)._replace(features=[torch.ones(1, 3)])

    for _ in range(2):
        found = teacher(IMAGES[:2], forward, [0, 1])
    assert found.features[0].shape == (1, 3)
    assert found.output.shape[0] == 2
    assert 0 not in teacher


def test_learning_is_the_same_with_and_without_keys(net):
    states = []
    start = {key: value.clone() for key, value in net.state_dict().items()}
    for keys in (None, [0, 1]):
        net.load_state_dict(start)
        tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=1)
        for iteration in range(1, 4):
            tuner.step(IMAGES[:2], iteration, keys=keys)
        states.append({key: value.clone() for key, value in net.state_dict().items()})
    torch.testing.assert_close(*states)
    assert any(not torch.equal(states[0][key], start[key]) for key in start)
