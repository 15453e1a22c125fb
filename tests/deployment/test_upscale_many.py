"""A thousand files of all kinds, one in twenty of them broken.

The good ones are written, the bad ones named.
"""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY_EDSR
from image_files import KINDS, LOSSY, REFUSED

from adabm_basicsr import calibrate, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.data.images import decode_pixels

COUNT, EVERY = 1000, 20
# Bytes that 1,000 images may take beyond 250; all their results would take as much again and more.
MORE = 40e6
PEAK = """
import resource, sys
from adabm_basicsr.commands.main import main
try:
    main(sys.argv[1:])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
SUFFIXES = {
    "PNG": "png",
    "JPEG": "jpg",
    "TIFF": "tif",
    "BMP": "bmp",
    "WebP": "webp",
    "PPM": "ppm",
    "PBM": "pgm",
}


def suffix_of(kind):
    return next((suffix for name, suffix in SUFFIXES.items() if name in kind), "png")


def write_all(folder):
    """Files of mixed kinds and sizes; returns the names of the good and of the bad ones."""
    good, bad = list({**KINDS, **LOSSY}.items()), list(REFUSED.items())
    random, names = np.random.default_rng(0), ([], [])
    for index in range(COUNT):
        broken = index % EVERY == EVERY - 1
        kind, (content, _) = (bad if broken else good)[
            index // (EVERY if broken else 1) % len(bad if broken else good)
        ]
        name = f"{index:04d}.{suffix_of(kind)}"
        if not broken and index % 3 == 0:  # larger than what those files hold
            pixels = random.integers(0, 256, (*random.integers(30, 90, 2), 3), dtype=np.uint8)
            content, name = cv2.imencode(".png", pixels)[1].tobytes(), f"{index:04d}.png"
        (folder / name).write_bytes(content)
        names[broken].append(name)
    return names


def upscale(model, sources, out):
    argv = [
        "upscale",
        "-m",
        str(model),
        "-i",
        *map(str, sources),
        "-o",
        str(out),
        "--tile",
        "64",
        "--device",
        "cpu",
    ]
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *argv], capture_output=True, text=True, check=False
    )
    return run, int(run.stdout.split("peak ")[1])


@pytest.mark.slow
def test_a_thousand_images_of_which_fifty_are_broken(tmp_path):
    torch.manual_seed(0)
    net = calibrate(
        AdaBMNetwork(network=dict(TINY_EDSR), recipe="static"), [torch.rand(4, 3, 24, 24)]
    )
    save_packed(net, tmp_path / "net.safetensors")
    (tmp_path / "in").mkdir()
    good, bad = write_all(tmp_path / "in")
    run, peak = upscale(tmp_path / "net.safetensors", [tmp_path / "in"], tmp_path / "out")

    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert len(bad) == 50
    assert "50 of 1000 images failed" in run.stderr
    assert all(f"image {tmp_path / 'in' / name} " in run.stderr for name in bad)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == good
    for name in good:
        before, after = (
            decode_pixels((tmp_path / part / name).read_bytes(), name) for part in ("in", "out")
        )
        assert [2 * side for side in before.shape[:2]] == list(after.shape[:2])

    quarter = [tmp_path / "in" / name for name in good[:250]]
    assert peak - upscale(tmp_path / "net.safetensors", quarter, tmp_path / "some")[1] < MORE
