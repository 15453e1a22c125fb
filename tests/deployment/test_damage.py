"""Files that were damaged, or made to do harm: a clear error, or what they held before."""

import io
import json
import pickle
import sys
import zipfile

import pytest
import torch
from conftest import TINY_EDSR
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    load_network,
    save_checkpoint,
    save_onnx,
    save_packed,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.checkpoint import load_tensors, read_checkpoint

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
WRITERS = {".pth": save_checkpoint, ".safetensors": save_packed, ".onnx": save_onnx}
NO_CHECKPOINT = r"cannot be read \(corrupt, or no PyTorch checkpoint\)"
DAMAGES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By kind of file, its bytes and what its network makes of `IMAGES`."""
    torch.manual_seed(0)
    net = calibrate(AdaBMNetwork(network=dict(TINY_EDSR), recipe="static"), [IMAGES])
    folder = tmp_path_factory.mktemp("whole")
    for suffix, write in WRITERS.items():
        write(net, folder / f"net{suffix}")
    return {
        suffix: ((folder / f"net{suffix}").read_bytes(), outcome(folder / f"net{suffix}"))
        for suffix in WRITERS
    }


def outcome(path):
    """The image that the file's network makes; None if the file is refused by a clear error."""
    reason = None
    try:
        net = load_network(path)
    except AdaBMError as error:
        reason = str(error)
    if reason is not None:
        assert path.name in reason
        return None
    with torch.no_grad():
        return net(IMAGES)


FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=8)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("part", ["header", "anywhere"])
@given(flips=FLIPS)
@DAMAGES
def test_flipped_bits_are_rejected_or_do_no_harm(whole, tmp_path, suffix, part, flips):
    content, image = bytearray(whole[suffix][0]), whole[suffix][1]
    for place, bit in flips:
        content[place % (1000 if part == "header" else len(content))] ^= 1 << bit
    (tmp_path / f"net{suffix}").write_bytes(content)
    found = outcome(tmp_path / f"net{suffix}")
    assert found is None or torch.equal(found, image)


@pytest.mark.parametrize("suffix", WRITERS)
@given(share=st.floats(0, 0.9999))
@example(share=0.0)
@DAMAGES
def test_files_that_are_cut_off_are_rejected(whole, tmp_path, suffix, share):
    (tmp_path / f"net{suffix}").write_bytes(whole[suffix][0][: int(share * len(whole[suffix][0]))])
    assert outcome(tmp_path / f"net{suffix}") is None


@pytest.mark.parametrize("suffix", WRITERS)
@given(content=st.binary(max_size=200))
@DAMAGES
def test_any_bytes_are_rejected(tmp_path, suffix, content):
    (tmp_path / f"net{suffix}").write_bytes(content)
    assert outcome(tmp_path / f"net{suffix}") is None


def test_a_flipped_weight_is_rejected(whole, tmp_path):
    content = bytearray(whole[".pth"][0])
    content[len(content) // 2] ^= 1  # torch itself would load it
    (tmp_path / "net.pth").write_bytes(content)
    torch.load(tmp_path / "net.pth", weights_only=True)
    with pytest.raises(AdaBMError, match=f"{NO_CHECKPOINT}: .* is damaged"):
        load_network(tmp_path / "net.pth")


def test_files_of_old_versions_of_torch_load(whole, tmp_path):
    content = torch.load(io.BytesIO(whole[".pth"][0]), weights_only=True)
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(outcome(tmp_path / "net.pth"), whole[".pth"][1])


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path, old):
    evil = {"params": {"a": torch.zeros(1)}, "adabm_basicsr": Evil(tmp_path / "hacked")}
    torch.save(evil, tmp_path / "net.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(AdaBMError, match=NO_CHECKPOINT):
        load_network(tmp_path / "net.pth")
    assert not (tmp_path / "hacked").exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path):
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Evil(tmp_path / "hacked")))
    with pytest.raises(AdaBMError, match=NO_CHECKPOINT):
        load_tensors(tmp_path / "net.pth")
    assert not (tmp_path / "hacked").exists()


def test_code_in_a_file_for_spandrel_is_not_run(tmp_path):
    pytest.importorskip("spandrel")
    torch.save({"params": Evil(tmp_path / "hacked")}, tmp_path / "net.pth")
    with pytest.raises(AdaBMError, match="spandrel cannot load"):
        AdaBMNetwork(network={"type": "Spandrel", "path": str(tmp_path / "net.pth")})
    assert not (tmp_path / "hacked").exists()


def test_modules_that_a_file_names_are_not_imported(whole, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(io.BytesIO(whole[".pth"][0]), weights_only=True)
    description = {**json.loads(content["adabm_basicsr"]), "custom_imports": ["evil_module"]}
    description["network"]["type"] = "Unknown"
    torch.save({**content, "adabm_basicsr": json.dumps(description)}, tmp_path / "net.pth")
    with pytest.raises(
        AdaBMError, match=r"registered by evil_module: name what you trust as custom_imports"
    ):
        load_network(tmp_path / "net.pth")
    assert not (tmp_path / "hacked").exists()
    assert "evil_module" not in sys.modules


def test_a_compressed_checkpoint_is_refused(tmp_path):
    torch.save({"params": {"a": torch.zeros(10**6)}}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "net.pth", "w", 8) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "net.pth").stat().st_size < 10_000
    with pytest.raises(
        AdaBMError, match=r"it is compressed, as torch\.save never does, and may fill the memory"
    ):
        load_tensors(tmp_path / "net.pth")


def test_a_weight_that_says_to_be_larger_than_its_file(tmp_path):
    torch.save({"params": {"a": torch.zeros(1).expand(10**7, 10**7)}}, tmp_path / "net.pth")
    with pytest.raises(AdaBMError, match="a is larger than what the file holds of it"):
        read_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "content", [3, "text", [], {}, {"params": 3}, {"params": {}}, {"params": {"a": "x"}}]
)
def test_checkpoints_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(AdaBMError, match="holds no weights"):
        read_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    torch.save({"params": {"a": torch.tensor([1.0, value])}}, tmp_path / "net.pth")
    with pytest.raises(AdaBMError, match="a holds NaN or infinite values"):
        read_checkpoint(tmp_path / "net.pth")
