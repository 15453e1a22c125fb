"""Quantized layers, one small file per type, behind a dispatch table.

A quantized layer is a subclass of the layer that it replaces and shares its parameters, so the keys
of the base network stay what they are. To support a layer type of your own, subclass it with
`QuantizedLayer` and register the pair::

    @register_layer(MyConv)
    class QuantizedMyConv(QuantizedLayer, MyConv):
        def compute(self, x, weight, bias):
            return my_conv(x, weight, bias)

Where that is linear in ``weight``, setting ``linear = True`` makes learning the range of the weight
cheaper.
"""

from adabm_basicsr.quantization.layers.base import (
    QuantizedLayer,
    float_type,
    is_half,
    is_quantizable,
    quantized_type,
    register_layer,
)
from adabm_basicsr.quantization.layers.conv import QuantizedConv2d, QuantizedConv3d
from adabm_basicsr.quantization.layers.conv_transpose import QuantizedConvTranspose2d
from adabm_basicsr.quantization.layers.deformable import DeformableProduct, deform_conv2d
from adabm_basicsr.quantization.layers.join import (
    JOINS_KEY,
    JoinMode,
    QuantizedJoin,
    QuantizesJoins,
    quantize_joins,
)
from adabm_basicsr.quantization.layers.linear import QuantizedLinear
from adabm_basicsr.quantization.layers.product import (
    PRODUCTS_KEY,
    ProductMode,
    QuantizedProduct,
    QuantizesProducts,
    quantize_products,
)

__all__ = [
    "JOINS_KEY",
    "PRODUCTS_KEY",
    "DeformableProduct",
    "JoinMode",
    "ProductMode",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedConvTranspose2d",
    "QuantizedJoin",
    "QuantizedLayer",
    "QuantizedLinear",
    "QuantizedProduct",
    "QuantizesJoins",
    "QuantizesProducts",
    "deform_conv2d",
    "float_type",
    "is_half",
    "is_quantizable",
    "quantize_joins",
    "quantize_products",
    "quantized_type",
    "register_layer",
]
