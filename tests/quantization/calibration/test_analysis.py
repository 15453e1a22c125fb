"""What to choose, before anything is quantized."""

import pytest
import torch
from conftest import TINY_EDSR, photograph

from adabm_basicsr import analyse

PIXELS = [torch.tensor(photograph(24, 24, seed)) for seed in range(8)]
IMAGES = torch.stack(PIXELS).permute(0, 3, 1, 2).float() / 255
OPTIONS = {"recipe": "fast", "fully_quantized": True}


@pytest.fixture(scope="module")
def analysis():
    from basicsr.archs import build_network

    torch.manual_seed(0)  # as that of the fixture `tiny`
    return analyse(build_network(TINY_EDSR), IMAGES, **OPTIONS)


def test_ways_are_the_cheapest_settings_that_are_enough(analysis):
    for way in analysis.ways:
        if way.self_psnr is None:
            assert max(setting.self_psnr for setting in analysis.settings) < way.wanted
            assert way.options == f"target: {{self_psnr: {way.wanted}}}"
        else:
            assert way.self_psnr >= way.wanted
    assert {way.wanted for way in analysis.ways} == {40, 45, 50}
    assert sum(setting.knee for setting in analysis.settings) == 2
    assert analysis.choice.a_bits == 8
    assert analysis.choice.options in analysis.advice[0]


def test_the_same_seed_gives_the_same_analysis(tiny, analysis):
    assert analyse(tiny, IMAGES, **OPTIONS) == analysis
