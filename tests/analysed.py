"""What an analysis of a tiny network is made of: its images and options."""

import torch
from conftest import photograph

PIXELS = [torch.tensor(photograph(24, 24, seed)) for seed in range(8)]
IMAGES = torch.stack(PIXELS).permute(0, 3, 1, 2).float() / 255
OPTIONS = {"recipe": "fast", "fully_quantized": True}
