"""Options of architectures: which their constructors take, and which of them is wrong."""

import pytest
from basicsr.utils.registry import ARCH_REGISTRY
from small_networks import Interpolating

from adabm_basicsr import AdaBMError
from adabm_basicsr.archs.adabm_arch import build_base


@ARCH_REGISTRY.register()
class AnyPositions(Interpolating):
    def __init__(self, *args):
        super().__init__(*(args or (1,)))


@ARCH_REGISTRY.register()
class AnyPositionsAndNames(Interpolating):
    def __init__(self, *args, blocks=1, **kwargs):
        super().__init__(blocks)


@ARCH_REGISTRY.register()
class NeedsAPosition(Interpolating):
    def __init__(self, blocks, /):
        super().__init__(blocks)


@ARCH_REGISTRY.register()
class Typed(Interpolating):
    def __init__(self, blocks=2, scales=(1.0,), name="x", fast=False, inner=None):
        super().__init__(blocks + int(sum(scales)) + len(name) + (1 / 0 if fast == 3 else 0))


def test_arguments_by_position_may_be_left_out():
    assert len(build_base({"type": "AnyPositions"}).blocks) == 1
    assert len(build_base({"type": "AnyPositionsAndNames", "blocks": 2, "x": 1}).blocks) == 2


WRONG = {
    "AnyPositions: unknown key 'args'; there are none": {"type": "AnyPositions", "args": [2]},
    "NeedsAPosition: its argument blocks can't be given by name, as options are; remove the / "
    "behind it": {"type": "NeedsAPosition"},
    "Typed: blocks: 'x' is not of the kind of 2, its default": {"blocks": "x"},
    "Typed: blocks: True is not of the kind of 2, its default": {"blocks": True, "scales": ["x"]},
    "Typed: scales: 3 is not of the kind of (1.0,), its default": {"scales": 3},
    "Typed: name: 3 is not of the kind of 'x', its default": {"name": 3},
    "Typed: fast: 3 is not of the kind of False, its default": {"fast": 3},
    "Typed cannot be built from {scales: ['x'], inner: 3}": {"scales": ["x"], "inner": 3},
}


@pytest.mark.parametrize("text", WRONG)
def test_options_that_an_architecture_does_not_take(text):
    with pytest.raises(AdaBMError) as caught:
        build_base({"type": "Typed", **WRONG[text]})
    assert str(caught.value).startswith(f"network_g: network: {text}")
