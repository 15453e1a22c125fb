"""What a quantized network costs, covers and loses.

- `cost`: bits, BitOPs and size.
- `coverage`: what share of it is quantized, and why the rest isn't.
- `summary`: one table of its layers.
- `psnr`: how close its images are to those of full precision.
"""
