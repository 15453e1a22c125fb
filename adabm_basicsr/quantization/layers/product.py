"""Quantized products of two activations, as attention has them (q·k and attention·v).

Such a product is an operator inside some module's ``forward``, not a layer that could be replaced.
While that module runs, a torch function mode hands its products to quantized ones, the first to the
first and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adabm_basicsr.quantization.layers.mixing import MadeType, made_type, set_aside

PRODUCTS_KEY = "quantized_products"  # child of a module whose products are quantized
Product = Callable[[Tensor, Tensor], Tensor]

_FUNCTIONS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}


class QuantizedProduct(nn.Module):
    """Product of two activations.

    Args:
        left: Quantizer of the left operand, ``nn.Identity`` to leave it in float.
        right: Quantizer of the right operand.
    """

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left = left
        self.right = right

    def inputs(self, name: str) -> dict[str, nn.Module]:
        """Quantizers of what the product of that name takes, by a name of their own."""
        return {f"{name}.left": self.left, f"{name}.right": self.right}

    def forward(self, product: Product, left: Tensor, right: Tensor) -> Tensor:
        """``product(left, right)`` on quantized operands.

        Args:
            product: How the network multiplies.
            left: ``(B * k, ...)`` for a batch of ``B`` images.
            right: The same.
        """
        return product(self.left(left), self.right(right))


class ProductMode(TorchFunctionMode):
    """Calls `product` for every product of two activations while the mode is active."""

    def product(self, function: Product, left: Tensor, right: Tensor) -> Tensor:
        """What to compute instead of ``function(left, right)``."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return _attention(self.product, *args, **kwargs)
        if func is torch.einsum and len(args) == 3 and are_activations(args[1:]):
            equation, left, right = args
            return self.product(partial(torch.einsum, equation), left, right)
        if func in _FUNCTIONS and len(args) == 2 and not kwargs and are_activations(args):
            left, right = args
            return self.product(func, left, right)
        return func(*args, **kwargs)


def are_activations(operands: Sequence[object]) -> bool:
    """Whether these are tensors that the network computes, rather than its parameters."""
    for operand in operands:
        if not isinstance(operand, Tensor) or isinstance(operand, nn.Parameter):
            return False
    return True


def _attention(
    product: Callable[[Product, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    **_: Any,
) -> Tensor:
    """``scaled_dot_product_attention`` in evaluation mode, spelt out into its two products."""
    if scale is None:
        # Not as a Python number, which a traced graph would keep for other sizes of image: where
        # channels attend to channels, it is the image's size.
        scale = torch.as_tensor(query.shape[-1]).double().rsqrt().to(query.dtype)
    scores = product(torch.matmul, query * scale, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return product(torch.matmul, scores.softmax(-1), value)


class _QuantizingMode(ProductMode):
    """Hands products to quantized ones, the first to the first and so on."""

    def __init__(self, products: nn.ModuleList) -> None:
        super().__init__()
        self.products = iter(products)

    def product(self, function: Product, left: Tensor, right: Tensor) -> Tensor:
        """``function(left, right)`` on quantized operands."""
        quantized = next(self.products, None)
        # A module around this one may quantize products too; this one isn't its own.
        with torch._C.DisableTorchFunction():
            if quantized is None:
                # A branch that wasn't taken when the network was looked at.
                return function(left, right)
            output: Tensor = quantized(function, left, right)
            return output


class QuantizesProducts(MadeType):
    """Mixin for a module whose ``forward`` computes products."""

    prefix = "Quantized"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, with quantized products."""
        with set_aside(self, PRODUCTS_KEY) as products, _QuantizingMode(products):
            return super().forward(*args, **kwargs)


def quantize_products(module: nn.Module, products: Sequence[QuantizedProduct]) -> None:
    """Make ``module`` compute its products by ``products``, in the order of its ``forward``."""
    module.__class__ = made_type(QuantizesProducts, type(module))
    module.add_module(PRODUCTS_KEY, nn.ModuleList(products))
