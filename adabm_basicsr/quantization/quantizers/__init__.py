"""Quantizers of activations and weights, simulated in floating point.

`fake_quantize` rounds to a grid and lets gradients through. The two quantizers own what it rounds
with: `ActivationQuantizer` a range and bits that follow layer and image, `WeightQuantizer` a range
for each output channel.
"""
