"""Published losses of quantized super-resolution networks, to stand beside ours.

Losses are PSNR (Y, border of the scale) below the same network in full precision. Those networks
have other weights than ours, so that losses compare and PSNR doesn't.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What was published for one network and one choice of bits.

    Args:
        source: Where it is from, or the best of which methods it is.
        network: Architecture, as ours is named.
        bits: Bits of weights and activations, such as "W4A4".
        scope: What is quantized, a key of `results.SCOPES`; None where that isn't known.
        trained: Whether the network was trained with quantization, on pairs of images, rather than
            quantized after training.
        losses: In dB, by test set.
        scale: Factor of the network.
    """

    source: str
    network: str
    bits: str
    scope: str | None
    trained: bool
    losses: dict[str, float]
    scale: int = 4


BEST_AFTER_TRAINING = "best after training"
BEST_TRAINED = "best trained with quantization"
CONDIQUANT = "CondiQuant (arXiv 2502.15478), SwinIR-light"

PUBLISHED = (
    Published(
        source="ranges of minimum and maximum",
        network="EDSR",
        bits="W4A4",
        scope="full",
        trained=False,
        losses={"Set5": 5.27, "Set14": 3.54, "B100": 2.99, "Urban100": 2.92},
    ),
    Published(
        source="AdaBM (arXiv 2404.03296)",
        network="EDSR",
        bits="W4A4",
        scope="full",
        trained=False,
        losses={"Set5": 1.08, "Set14": 0.71, "B100": 0.65, "Urban100": 0.93},
    ),
    Published(
        source=BEST_AFTER_TRAINING,
        network="EDSR",
        bits="W4A4",
        scope="full",
        trained=False,
        losses={"Set5": 0.56, "Set14": 0.32},
    ),
    Published(
        source=BEST_TRAINED,
        network="EDSR",
        bits="W4A4",
        scope=None,
        trained=True,
        losses={"Set5": 0.10, "Set14": 0.11},
    ),
    Published(
        source=BEST_AFTER_TRAINING,
        network="EDSR",
        bits="W3A3",
        scope=None,
        trained=False,
        losses={"Set5": 1.42},
    ),
    Published(
        source=BEST_TRAINED,
        network="EDSR",
        bits="W3A3",
        scope=None,
        trained=True,
        losses={"Set5": 0.58, "Set14": 0.40},
    ),
    Published(
        source=BEST_TRAINED,
        network="EDSR",
        bits="W2A2",
        scope=None,
        trained=True,
        losses={"Set5": 1.13, "Set14": 0.71},
    ),
    Published(
        source=CONDIQUANT,
        network="SwinIR",
        bits="W4A4",
        scope="body",
        trained=False,
        losses={"Set5": 0.36, "Set14": 0.27, "B100": 0.17, "Urban100": 0.51},
    ),
    Published(
        source=CONDIQUANT,
        network="SwinIR",
        bits="W3A3",
        scope="body",
        trained=False,
        losses={"Set5": 0.83, "Set14": 0.57, "B100": 0.38, "Urban100": 1.09},
    ),
    Published(
        source=CONDIQUANT,
        network="SwinIR",
        bits="W2A2",
        scope="body",
        trained=False,
        losses={"Set5": 1.81, "Set14": 1.18, "B100": 0.76, "Urban100": 1.94},
    ),
)
