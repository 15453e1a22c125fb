"""Files for programs of others give the same pixels in the versions that these programs have."""

import sys

import pytest
import torch
from agreement import quantized, smooth
from conftest import TESTS
from engine_networks import NETWORKS
from environments import Environment

from adabm_basicsr.deployment.engines import EXPORTS, save_for
from adabm_basicsr.quantization.engines import ENGINES
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

pytestmark = [pytest.mark.slow, pytest.mark.runtimes]

SHOWN = {
    "EDSR": NETWORKS["EDSR"],
    "SRVGGNetCompact": NETWORKS["SRVGGNetCompact"],
    # OpenVINO 2024.6 compiles no attention of a single channel, which 16 features would have.
    "IMDN": {"type": "IMDN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_modules": 2},
}
# Each: the engine, what runs its files, and the packages.
PLACES = {
    "chaiNNer": ("portable", "onnxruntime", "onnxruntime==1.17.1", "onnx==1.16.2", "numpy<2"),
    "vs-mlrt": ("portable", "openvino", "openvino==2024.6.0"),
    "OpenCV 4": ("portable", "opencv", "opencv-python-headless==4.14.0.94"),
    "OpenCV 5": ("portable", "opencv", "opencv-python-headless==5.0.0.93"),
    "ncnn of 2023": ("ncnn", "ncnn", "ncnn==1.0.20231027"),
    "ncnn of 2024": ("ncnn", "ncnn", "ncnn==1.0.20240820"),
    "ncnn of 2026": ("ncnn", "ncnn", "ncnn==1.0.20261020"),
}


@pytest.mark.parametrize("place", PLACES)
def test_pixels_are_those_of_the_simulation(place, tmp_path_factory, monkeypatch):
    engine, runtime, *packages = PLACES[place]
    environment = Environment(tmp_path_factory.mktemp("environment"), *packages)
    monkeypatch.setattr(sys, "path", [str(TESTS / "example_project"), *sys.path])
    for name, network in SHOWN.items():
        net = quantized(
            network,
            engine=engine,
            recipe="fast",
            w_bits=ENGINES[engine].max_w_bits,
            a_bits=8,
            custom_imports=["inhouse.archs"],
        )
        path = environment.folder / f"{name}{EXPORTS[engine].suffix}"
        save_for(engine, net, path)
        for size in ((40, 52), (33, 17)):
            image = smooth(1, size=size)
            with torch.no_grad():
                expected = net(image)
            found = environment.output(runtime, str(path), image)
            assert pixel_psnr(found, expected) >= 50, (name, size)
