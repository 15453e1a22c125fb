"""ONNX graphs of quantized networks: export, rewrites for the runtimes, exact arithmetic, seal."""
