"""What a user does with files for engines: export, look at them, upscale images of any size."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from agreement import THREADS, quantized
from conftest import photograph
from engine_networks import MIRRORING, NETWORKS

from adabm_basicsr import save_checkpoint
from adabm_basicsr.commands.main import main
from adabm_basicsr.deployment.engines import EXPORTS
from adabm_basicsr.quantization.engines import ENGINES


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes the checkpoint of a network for an engine."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(engine):
        path = folder / f"{engine}.pth"
        if not path.exists():
            bits = {"w_bits": ENGINES[engine].max_w_bits, "a_bits": 8}
            # Files for ncnn have no pixel unshuffle.
            network = NETWORKS["RRDBNet"] if engine == "ncnn" else MIRRORING
            save_checkpoint(quantized(network, engine=engine, recipe="fast", **bits), path)
        return path

    return make


def fails(argv, capsys):
    """The line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    return error


# OpenVINO runs all files but those for ncnn.
EACH_ENGINE = [
    pytest.param(engine, marks=[] if engine == "ncnn" else pytest.mark.runtimes)
    for engine in EXPORTS
]


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_from_a_checkpoint_to_pixels(engine, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = made(engine)
    file = f"net{EXPORTS[engine].suffix}"
    main(["export", "-m", str(checkpoint), "--for", engine, "-o", file])
    printed = capsys.readouterr().out
    assert file in printed.splitlines()[0]
    assert file in printed.splitlines()[-1]

    main(["inspect", file, "--json"])
    contents = json.loads(capsys.readouterr().out)
    assert contents["facts"]["engine"] == engine
    assert contents["facts"]["network"] == "RRDBNet"
    assert {row["type"] for row in contents["rows"]} <= {"int8", "int4"}
    main(["inspect", file])
    assert "int8" in capsys.readouterr().out

    for index, (height, width) in enumerate([(23, 31), (40, 17), (1, 3)]):
        cv2.imwrite(str(tmp_path / f"{index}.png"), photograph(height, width, index))
    flags = ["--tile", "16", "--tile-overlap", "4", "--ext", "png", "--threads", str(THREADS)]
    main(["upscale", "-m", file, "-i", "*.png", "-o", "of_file", *flags])
    main(["upscale", "-m", str(checkpoint), "-i", "*.png", "-o", "simulated", *flags])
    for index in range(3):
        found = cv2.imread(f"of_file/{index}.png").astype(float)
        expected = cv2.imread(f"simulated/{index}.png").astype(float)
        assert np.square(found - expected).mean() < 255**2 / 10**5  # 50 dB


@pytest.fixture(scope="module")
def exported_pair(made, tmp_path_factory):
    """A folder with the files of an ncnn network."""
    folder = tmp_path_factory.mktemp("pair")
    path = folder / "net.param"
    main(["export", "-m", str(made("ncnn")), "--for", "ncnn", "-o", str(path), "--quiet"])
    return folder


@pytest.fixture
def pair(exported_pair, tmp_path, monkeypatch):
    """A copy of them in the working directory."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.png", photograph(12, 14))
    shutil.copytree(exported_pair, tmp_path, dirs_exist_ok=True)
    return Path("net.param")


UPSCALE = ["upscale", "-m", "net.param", "-i", "image.png", "-o", "out"]


@pytest.mark.parametrize("command", [UPSCALE, ["inspect", "net.param"]])
@pytest.mark.parametrize("suffix", [".bin", ".json"])
def test_missing_parts_of_an_ncnn_network_are_named(command, suffix, pair, capsys):
    pair.with_suffix(suffix).rename(f"renamed{suffix}")
    error = fails(command, capsys)
    assert f"net{suffix} does not exist" in error
    pair.with_suffix(suffix).mkdir()
    assert f"net{suffix} is a folder, not a file" in fails(command, capsys)


@pytest.mark.parametrize("suffix", [".param", ".bin", ".json"])
def test_unreadable_parts_of_an_ncnn_network_are_named(suffix, pair, capsys):
    pair.with_suffix(suffix).write_bytes(b"\xff\xfe not ours")
    assert f"net{suffix} is " in fails(UPSCALE, capsys)


def test_a_param_says_for_whom_it_is(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = fails(["export", "-m", str(made("ncnn")), "-o", "x.param"], capsys)
    assert "--out: x.param is a file for ncnn: add --for ncnn" in error


def test_how_to_install_ncnn_is_said(pair, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    assert 'ncnn is not installed: pip install ".[ncnn]"' in fails(UPSCALE, capsys)


@pytest.mark.parametrize("flag", [["--runtime", "openvino"], ["--device", "cuda"]])
def test_flags_for_others_are_refused(flag, pair, capsys):
    assert f"{flag[0]}: {flag[1]} runs " in fails([*UPSCALE, *flag], capsys)


def test_an_interrupted_export_leaves_the_pair_as_it_was(pair, made, monkeypatch, capsys):
    before = {part: part.read_bytes() for part in Path().glob("net.*")}
    monkeypatch.setattr(Path, "write_text", full_disk)
    assert "No space left" in fails(
        ["export", "-m", str(made("ncnn")), "--for", "ncnn", "-o", "net.param"], capsys
    )
    assert {part: part.read_bytes() for part in Path().glob("net.*")} == before


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")
