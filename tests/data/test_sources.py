"""Names from lists and LMDBs, which never lead out of the data root."""

import os

import pytest
from conftest import write_images

from adabm_basicsr import AdaBMError
from adabm_basicsr.data.prepare import prepare
from adabm_basicsr.data.sources import open_lmdb, read_keys, read_names


@pytest.fixture
def images(tmp_path):
    """An LMDB of three images."""
    prepare(write_images(tmp_path / "hr", [(64, 72)] * 3), 2, tmp_path / "lr.lmdb")
    return tmp_path / "lr.lmdb"


@pytest.fixture
def listed(tmp_path):
    """Write a list and read it."""

    def read(content, reader=read_names):
        (tmp_path / "meta.txt").write_bytes(content)
        return reader(tmp_path / "meta.txt", "root")

    return read


def test_names_are_the_first_words_and_keys_end_at_a_dot(listed):
    assert listed(b"a/b.png (8,8,3)\n\nc.d.png\n") == ["a/b.png", "c.d.png"]
    assert listed(b"a/b.png (8,8,3) 1\nc d.png (1,1,3) 1\n", read_keys) == ["a/b", "c d"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../a.png", "..", "a\0.png"])
def test_names_that_lead_out_are_refused(listed, name):
    with pytest.raises(
        AdaBMError, match=r"meta info file .*meta\.txt: .* lies outside the data root root"
    ):
        listed(name.encode())


def test_keys_that_lead_out_are_refused(listed):
    with pytest.raises(AdaBMError, match="'/etc/passwd' lies outside the data root root"):
        listed(b"/etc/passwd.png (8,8,3) 1\n", read_keys)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"\xff\xfe\0", "cannot be read")],
)
def test_lists_that_are_none(listed, content, text):
    with pytest.raises(AdaBMError, match=text):
        listed(content)


def test_lmdb_gives_its_images(images):
    with open_lmdb(images) as read:
        assert all(
            read(key).startswith(b"\x89PNG") for key in read_keys(images / "meta_info.txt", images)
        )


@pytest.mark.parametrize("key", ["", "gone", "é", "a" * 600])
def test_lmdb_without_an_image_of_the_list(images, key):
    with pytest.raises(AdaBMError, match=r"lr\.lmdb"), open_lmdb(images) as read:
        read(key)


@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 20_000])
def test_lmdb_that_is_cut_off(images, size):
    os.truncate(images / "data.mdb", size)
    with (
        pytest.raises(AdaBMError, match=r"LMDB .*lr\.lmdb (cannot be read|is cut off)"),
        open_lmdb(images),
    ):
        pass


def test_no_lmdb(tmp_path):
    with (
        pytest.raises(AdaBMError, match=r"LMDB .* does not exist, or has no data\.mdb"),
        open_lmdb(tmp_path),
    ):
        pass
