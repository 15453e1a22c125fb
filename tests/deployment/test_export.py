"""The command that writes files to deploy."""

import pytest
import torch
from conftest import TINY_EDSR

from adabm_basicsr import calibrate, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.cli import main
from adabm_basicsr.deployment.load import load_network

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = calibrate(AdaBMNetwork(network=dict(TINY_EDSR)), [IMAGES])
    save_checkpoint(net, "net.pth")
    return net


def test_export_writes_a_packed_file_beside_the_checkpoint(checkpoint, capsys):
    main(["export", "-m", "net.pth", "--format", "packed"])
    assert "written: net.safetensors" in capsys.readouterr().out
    with torch.no_grad():
        assert torch.equal(load_network("net.safetensors")(IMAGES), checkpoint(IMAGES))


BAD = {
    ("-m", "gone.pth"): "checkpoint gone.pth does not exist",
    ("-m", "net.pth", "-o", "net.onnx"): "must end in .safetensors",
    ("-m", "net.safetensors"): "is the model itself",
}


@pytest.mark.parametrize("argv", BAD)
def test_mistakes_are_one_line(argv, checkpoint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *argv])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and BAD[argv] in error and error.count("\n") == 1
