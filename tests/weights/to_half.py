"""Writes the weights of a trained network in half precision, as they are kept here.

    python tests/weights/to_half.py experiments/NAME/models/net_g_latest.pth NAME.pth

What several layers have alike is written once, and small whole numbers, such as masks, as bytes.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from adabm_basicsr.files import atomic_path


def to_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as halves or bytes, from which networks load; equal tensors become one."""
    written: dict[tuple[torch.dtype, bytes], Tensor] = {}
    halves = {}
    for name, tensor in state.items():
        small = _smaller(tensor)
        content = small.dtype, small.numpy().tobytes()
        halves[name] = written.setdefault(content, small).view_as(tensor)
    return halves


def _smaller(tensor: Tensor) -> Tensor:
    in_bytes = tensor.to(torch.int8)
    if torch.equal(in_bytes.to(tensor.dtype), tensor):
        return in_bytes
    if tensor.is_floating_point():
        return tensor.half()
    return tensor


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
