"""What engines compute with, which a network is calibrated for: one table, `ENGINES`.

An engine is a program that runs a quantized network as integers. Which integers it takes is decided
before calibration, so that what is simulated is what will run. To add an engine, give it an entry;
option files, simulation and export follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from adabm_basicsr.quantization.recipes import Arithmetic

DEFAULT_ENGINE = "openvino"
# Of the integers that all engines multiply: operands of fewer bits take as long.
KERNEL_BITS = 8

# What is quantized of sums.
NO_SUMS = "none"
RESIDUAL = "residual"  # what is added to a layer's output
CONCATENATIONS = "concatenations"  # sums stay in float, what is concatenated doesn't
ALL_SUMS = "all"  # both operands and the sum, and whatever else layers make


@dataclass(frozen=True)
class Engine:
    """The arithmetic of an engine.

    Attributes:
        zero_points: Whether activations may have a zero point; otherwise they are signed integers
            around 0.
        channel_scales: Whether each channel of an activation may have a scale of its own.
        image_classes: Whether a file can choose ranges and bits by the image.
        min_a_bits: Smallest bit-width of activations. Fewer bits than 8 need a clip behind the
            rounding, which keeps some engines from running the layers as integers.
        max_w_bits: Largest bit-width of weights. Some processors add up pairs of products in 16
            bits, which those of 8 bits overflow.
        narrow: Whether signed integers, weights and activations, end at -127 rather than at -128.
        sums: What of sums is quantized: `NO_SUMS`, `RESIDUAL`, `CONCATENATIONS` or
            `ALL_SUMS`.
        whole_biases: Whether biases are integers of 32 bits, in units of what products add up to.
        ties_away: Whether halves are rounded away from zero, rather than to the even neighbour.
    """

    zero_points: bool
    channel_scales: bool
    image_classes: bool
    min_a_bits: int
    max_w_bits: int
    narrow: bool
    sums: str
    whole_biases: bool
    ties_away: bool

    def restrict(self, arithmetic: Arithmetic) -> Arithmetic:
        """A recipe's arithmetic, as far as the engine has it."""
        lowest, highest = arithmetic.bit_range
        restricted = replace(
            arithmetic,
            channel_grids=arithmetic.channel_grids and self.channel_scales,
            bit_range=(max(lowest, self.min_a_bits), highest),
            max_w_bits=min(arithmetic.max_w_bits, self.max_w_bits),
            min_a_bits=max(arithmetic.min_a_bits, self.min_a_bits),
        )
        if self.image_classes:
            return restricted
        return replace(restricted, adaptive=False, image_bits=(0, 0), image_ranges=False)


_ONNXRUNTIME = Engine(
    zero_points=True,
    channel_scales=False,
    image_classes=False,
    min_a_bits=8,
    max_w_bits=8,
    narrow=False,
    sums=ALL_SUMS,
    whole_biases=True,
    ties_away=False,
)

ENGINES = {
    "openvino": Engine(
        zero_points=True,
        channel_scales=True,
        image_classes=True,
        min_a_bits=2,
        max_w_bits=8,
        narrow=False,
        sums=NO_SUMS,
        whole_biases=False,
        ties_away=False,
    ),
    # One scale for all channels, so that what is split and concatenated stays integers.
    "openvino_uint8": replace(_ONNXRUNTIME, sums=CONCATENATIONS, whole_biases=False),
    "ncnn": Engine(
        zero_points=False,
        channel_scales=False,
        image_classes=False,
        min_a_bits=8,
        max_w_bits=8,
        narrow=True,
        sums=NO_SUMS,
        whole_biases=False,
        ties_away=True,
    ),
    "onnxruntime": _ONNXRUNTIME,
    "tensorrt": Engine(
        zero_points=False,
        channel_scales=False,
        image_classes=False,
        min_a_bits=8,
        max_w_bits=8,
        narrow=False,
        sums=RESIDUAL,
        whole_biases=False,
        ties_away=False,
    ),
    # The same, with weights that every CPU adds up rightly.
    "portable": replace(_ONNXRUNTIME, max_w_bits=7),
}
