"""Quantizers of activations and weights, simulated in floating point."""
