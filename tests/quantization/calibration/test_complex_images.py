"""Which images are the most complex ones of a set."""

import pytest
import torch

from adabm_basicsr.errors import OptionError
from adabm_basicsr.quantization.calibration.complex_images import most_complex, share_of_images


def test_share_is_that_of_the_images_above():
    complexities = torch.tensor([2.0, 8.0, 1.0, 4.0])
    assert most_complex(complexities, 1) == (0.25, 6.0)
    assert most_complex(complexities, 3) == (0.75, 1.5)


def test_images_as_complex_as_the_last_one_count():
    complexities = torch.tensor([2.0, 8.0, 8.0, 8.0])
    assert most_complex(complexities, 1) == (0.75, 5.0)


def test_simplest_images_never_count():
    assert most_complex(torch.tensor([2.0, 8.0, 1.0, 1.0]), 4) == (0.5, 1.0)


@pytest.mark.parametrize("count", [1, 4])
def test_images_that_are_all_alike_are_rejected(count):
    images = torch.rand(1, 3, 8, 8).repeat(count, 1, 1, 1)
    with pytest.raises(
        OptionError,
        match=r"full_precision_images: 0\.25, but no calibration image is more complex",
    ):
        share_of_images([images], 0.25)
