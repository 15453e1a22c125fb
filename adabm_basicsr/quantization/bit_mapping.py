"""The core idea of AdaBM (CVPR 2024, arXiv 2404.03296): bits that follow the image and the layer.

    bit-width of an activation = base bits + layer factor + image factor

Both factors are in {-1, 0, +1}:

- *Layer to bit* (`layer_factor`): one learnable scalar per layer. Layers that lose much by rounding
  get a bit more, insensitive ones a bit less.
- *Image to bit* (`ImageBitMapping`): two learnable thresholds per network on the complexity of an
  image (`image_complexity`). Complex images get a bit more, simple ones a bit less.

Factors are whole numbers in the forward pass. In the backward pass they are soft functions of what
is learned (`straight_through`), so that gradient descent trains them along with the ranges.

Recipes that share bits out by measured sensitivity (`calibration/allocation.py`) set the layer's
scalar instead of learning it and let it go beyond one bit. `best`, `fast` and `thorough` keep the
bits of all images, and give complex ones clipping ranges of their own (`quantizers/activation.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.checks import CLIP_AXES

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue
COMPLEXITY_SCALE = 1000.0
MIN_DISTANCE = 1e-12  # equal thresholds come from calibration images that are all alike


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """``hard`` in the forward pass, the gradient of ``soft`` in the backward pass.

    f = soft - stop_gradient(soft) + stop_gradient(hard)
    """
    return soft - soft.detach() + hard.detach()


def layer_factor(m: Tensor, reach: int = 1) -> Tensor:
    """Layer to bit: what a layer adds to its base bits, from its learnable scalar ``m``.

    hard(m) = round(clamp(m, -reach, reach)),   soft(m) = tanh(m)

    Args:
        m: Scalar of the layer, shape ``(1,)``.
        reach: Bits that the factor may add or take; 1 in the paper.

    Returns:
        Shape ``(1,)``: a whole number in ``-reach..reach``.
    """
    hard = m.clamp(-reach, reach).round()
    return straight_through(torch.tanh(m), hard)


def image_complexity(image: Tensor) -> Tensor:
    """How much an image varies, which decides its factor.

    c = 1000 * mean |gradient of g|, where g is the image as grey and the gradient is that of the
    normalised Sobel pair (kernels divided by 8, replicate padding); the mean is over both
    directions and all pixels.

    Args:
        image: ``(B, C, H, W)`` in 0..1. Three channels are weighed as grey, any other number is
            averaged. Of clips, ``(B, T, C, H, W)``, the complexity is the mean of their frames'.

    Returns:
        Shape ``(B,)``, at least 0; photographs have about 5 to 60.
    """
    return _complexity(image, torch.tensor(GREY), sobel_kernels())


def _complexity(image: Tensor, grey_weights: Tensor, kernels: Tensor) -> Tensor:
    """`image_complexity` by weights of three channels and by `sobel_kernels`."""
    if image.dim() == CLIP_AXES:
        of_frames = _complexity(frames_of(image), grey_weights, kernels)
        return of_frames.view(image.shape[:2]).mean(1)
    channels = image.shape[1]
    if channels == 3:
        weights = grey_weights.to(image)
    else:
        weights = image.new_full((channels,), 1 / channels)
    weighted = image * weights.view(1, -1, 1, 1)
    grey = weighted.sum(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    gradient = F.conv2d(padded, kernels.to(image))
    mean_gradient = gradient.abs().mean((1, 2, 3))
    return COMPLEXITY_SCALE * mean_gradient


def sobel_kernels() -> Tensor:
    """The normalised Sobel pair as the weight of a convolution, ``(2, 1, 3, 3)``."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    across = sobel / 8
    down = across.t()
    return torch.stack([across, down]).unsqueeze(1)


def frames_of(images: Tensor) -> Tensor:
    """All frames of clips, ``(B, T, C, H, W)`` to ``(B * T, C, H, W)``; images as they are."""
    if images.dim() == CLIP_AXES:
        return images.flatten(0, 1)
    return images


class ImageBitMapping(nn.Module):
    """Image to bit: two learnable thresholds on the complexity ``c`` of an image give its factor.

    hard(c) = -1 if c < lower, +1 if c > upper, else 0
    soft(c) = tanh((c - (upper + lower) / 2) * 2 / (upper - lower))

    Attributes:
        lower: Learnable threshold L; simpler images get factor -1.
        upper: Learnable threshold U above ``lower``; more complex images get factor +1.
    """

    # Constants of `image_complexity`. They move with the network: a GPU would be waited for
    # whenever they are copied there.
    grey_weights: Tensor
    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(1))
        self.upper = nn.Parameter(torch.zeros(1))
        self.register_buffer("grey_weights", torch.tensor(GREY), persistent=False)
        self.register_buffer("kernels", sobel_kernels(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Factor of each image or clip.

        Args:
            image: ``(B, C, H, W)`` or ``(B, T, C, H, W)`` in 0..1.

        Returns:
            Shape ``(B,)``, in {-1, 0, +1}; 0 for an image with values that aren't finite.
        """
        complexity = _complexity(image, self.grey_weights, self.kernels)
        is_complex = (complexity > self.upper).to(complexity.dtype)
        is_simple = (complexity < self.lower).to(complexity.dtype)
        hard = is_complex - is_simple
        middle = (self.upper + self.lower) / 2
        distance = (self.upper - self.lower).clamp(min=MIN_DISTANCE)
        from_middle = complexity - middle
        soft = torch.tanh(from_middle * 2 / distance)
        return straight_through(soft.nan_to_num(), hard)


def image_class(factor: Tensor) -> Tensor:
    """Class of each image, 0 (simple), 1 (middle) or 2 (complex), from its factor.

    Args:
        factor: What `ImageBitMapping` gives, ``(B,)``.

    Returns:
        Shape ``(B,)``, whole numbers without gradients.
    """
    return factor.detach().long() + 1
