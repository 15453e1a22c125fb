"""Writes the weights of a trained network in half precision, as they are kept here.

    python tests/weights/to_half.py experiments/NAME/models/net_g_latest.pth NAME.pth

What several layers have alike is written once.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from adabm_basicsr.files import atomic_path


def to_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as halves; tensors of equal values become one."""
    written: dict[tuple[torch.dtype, bytes], Tensor] = {}
    halves = {}
    for name, tensor in state.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        content = half.dtype, half.numpy().tobytes()
        halves[name] = written.setdefault(content, half).view_as(tensor)
    return halves


def main() -> None:
    """Read the arguments, convert and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    state = torch.load(args.source, weights_only=True)["params"]
    with atomic_path(args.target) as temporary:
        torch.save({"params": to_half(state)}, temporary)


if __name__ == "__main__":
    main()
