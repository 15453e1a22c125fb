"""What the upsamplers of our architectures share."""

from __future__ import annotations

SHUFFLES = {2: (2,), 3: (3,), 4: (2, 2)}


def shuffle_factors(upscale: int) -> tuple[int, ...]:
    """Factors of the pixel shuffles, one after the other, that enlarge an image ``upscale`` times.

    Raises:
        ValueError: ``upscale`` is not 2, 3 or 4.
    """
    if upscale not in SHUFFLES:
        valid = ", ".join(str(factor) for factor in SHUFFLES)
        raise ValueError(f"upscale {upscale!r} is not supported; valid: {valid}")
    return SHUFFLES[upscale]
