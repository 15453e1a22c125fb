"""A write error names the file and leaves the previous one whole."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import TINY_EDSR, photograph

from adabm_basicsr import save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.data.images import read_image, write_image
from adabm_basicsr.deployment.packed import load_packed, save_packed
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import TEMPORARY_PREFIX, atomic_path, remove_temporaries
from adabm_basicsr.quantization.calibration.calibrate import calibrate
from adabm_basicsr.quantization.checkpoint import load_checkpoint


@contextmanager
def no_file_above(size):
    """Within this context the system refuses to let files grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def net():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 12, 12)
    return calibrate(AdaBMNetwork(dict(TINY_EDSR), recipe="static"), [images])


def test_permissions_are_those_of_other_files(tmp_path):
    for path in (tmp_path / "plain", tmp_path / "shared"):
        path.touch()
    (tmp_path / "shared").chmod(0o664)
    with atomic_path(tmp_path / "new") as temporary, atomic_path(tmp_path / "shared") as again:
        temporary.write_text("x")
        again.write_text("x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"plain": modes["plain"], "new": modes["plain"], "shared": 0o664}


def check_refused(write, read, path):
    """Write ``path``, then fail to write it again; it is what it was."""
    write(path)
    before = path.read_bytes()
    with (
        no_file_above(100),
        pytest.raises(AdaBMError, match=rf"cannot write {path}: \[Errno 27\] File too large"),
    ):
        write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    read(path)


def test_checkpoint(net, tmp_path):
    check_refused(
        lambda p: save_checkpoint(net, p), lambda p: load_checkpoint(net, p), tmp_path / "net.pth"
    )


def test_packed_file(net, tmp_path):
    check_refused(lambda path: save_packed(net, path), load_packed, tmp_path / "net.safetensors")


def test_picture(tmp_path):
    picture = photograph(40, 50)
    check_refused(lambda path: write_image(picture, path), read_image, tmp_path / "picture.png")
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png")[..., ::-1], picture)


def test_picture_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdaBMError, match=r"cannot write .*picture\.png: "):
        write_image(photograph(8, 8), tmp_path / "file" / "picture.png")


def test_what_a_killed_process_left_is_removed(tmp_path):
    def interrupted():
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    (tmp_path / f"{TEMPORARY_PREFIX}x.pth").write_text("half")
    (tmp_path / "whole.pth").write_text("whole")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.pth"]
