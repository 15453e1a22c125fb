"""Names that lists and LMDBs give to images. None of them leads out of the data root.

Links inside a data root are followed: they are its owner's, and data sets are often made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lmdb

from adabm_basicsr.errors import ImageError, OptionError, not_found
from adabm_basicsr.files import is_file

LMDB_LIST = "meta_info.txt"
LMDB_DATA = "data.mdb"
# BasicSR's third, memcached, runs code from a folder that the options name.
BACKENDS = ("disk", "lmdb")


def backend_type(where: str, options: Mapping | None) -> str:
    """Where images are kept: one of `BACKENDS`.

    Args:
        where: The dataset, for the message.
        options: Its ``io_backend``.

    Raises:
        OptionError: It is another.
    """
    kind = (options or {}).get("type", "disk")
    if kind not in BACKENDS:
        valid = ", ".join(repr(backend) for backend in BACKENDS)
        raise OptionError(f"{where}: io_backend: type: unknown value {kind!r}; valid: {valid}")
    return kind


def read_names(list_file: str | Path, root: str | Path) -> list[str]:
    """File names below ``root`` that a meta info file lists: the first word of each line.

    Raises:
        ImageError: The file is missing, no text or empty, or a name is absolute or goes up a
            folder.
    """
    names = [line.split()[0] for line in _lines(list_file)]
    return _checked(names, list_file, root)


def read_keys(list_file: str | Path, root: str | Path) -> list[str]:
    """Keys of an LMDB that its meta info file lists.

    As in BasicSR, a key is a line up to its first dot.

    Raises:
        ImageError: As `read_names`.
    """
    keys = [line.split(".")[0] for line in _lines(list_file)]
    return _checked(keys, list_file, root)


def _lines(list_file: str | Path) -> list[str]:
    if not is_file(list_file):
        raise not_found("meta info file", list_file, ImageError)
    try:
        text = Path(list_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"meta info file {list_file} cannot be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ImageError(f"meta info file {list_file} is empty")
    return lines


def _checked(names: list[str], list_file: str | Path, root: str | Path) -> list[str]:
    for name in names:
        check_inside(name, root, f"meta info file {list_file}")
    return names


def check_inside(name: str, root: str | Path, where: str) -> None:
    """Check that a name doesn't lead out of ``root``; ``where`` says who gave it.

    Raises:
        ImageError: It does.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ImageError(f"{where}: {name!r} lies outside the data root {root}")


@contextmanager
def open_lmdb(root: str | Path) -> Iterator[Callable[[str], bytes]]:
    """Give a function from a key to the image file that an LMDB holds of it.

    Raises:
        ImageError: There is no LMDB, it is damaged or cut off, or the key isn't in it.
    """
    file = Path(root) / LMDB_DATA
    if not is_file(file):
        raise ImageError(f"LMDB {root} does not exist, or has no {LMDB_DATA}")
    reading = {"readonly": True, "lock": False, "readahead": False, "create": False}
    try:
        with lmdb.open(str(root), **reading) as environment:
            # Reading beyond the end of the file would end the process.
            pages = environment.info()["last_pgno"] + 1
            if pages * environment.stat()["psize"] > file.stat().st_size:
                raise ImageError(f"LMDB {root} is cut off: {LMDB_DATA} is shorter than it says")
            with environment.begin() as transaction:
                yield lambda key: _entry(transaction, key, root)
    except lmdb.Error as error:
        raise ImageError(f"LMDB {root} cannot be read: {error}") from error


def _entry(transaction: lmdb.Transaction, key: str, root: str | Path) -> bytes:
    content = transaction.get(key.encode()) if key else None
    if content is None:
        raise ImageError(f"LMDB {root} has no image {key!r}, which its list names")
    return bytes(content)
