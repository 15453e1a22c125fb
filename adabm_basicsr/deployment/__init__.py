"""Takes quantized networks out of training: packed and ONNX files, and what runs them."""
