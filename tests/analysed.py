"""What an analysis of a tiny network is made of: its images and options."""

from conftest import photographs

IMAGES = photographs(8, 24)
OPTIONS = {"recipe": "fast", "fully_quantized": True}
