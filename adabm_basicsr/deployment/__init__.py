"""Takes quantized networks out of training: packed files and their loading."""
