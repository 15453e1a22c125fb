"""ONNX graphs of quantized networks: export, reading, rewrites for engines, exact arithmetic."""
