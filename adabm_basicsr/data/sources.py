"""Names that lists and LMDBs give to images. None of them leads out of the data root.

Links inside a data root are followed: they are its owner's, and data sets are often made of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from adabm_basicsr.errors import AdaBMError, not_found

LMDB_LIST = "meta_info.txt"
LMDB_DATA = "data.mdb"
BACKENDS = (
    "disk",
    "lmdb",
)  # BasicSR's third, memcached, runs code from a folder that the options name


def backend_type(where: str, options: dict | None) -> str:
    """Where images are kept, one of `BACKENDS`, by the ``io_backend`` of a dataset; ``where`` names the dataset.

    Raises:
        AdaBMError: It is another.
    """
    kind = (options or {}).get("type", "disk")
    if kind not in BACKENDS:
        valid = ", ".join(map(repr, BACKENDS))
        raise AdaBMError(f"{where}: io_backend: type: unknown value {kind!r}; valid: {valid}")
    return kind


def read_names(list_file: str | Path, root: str | Path) -> list[str]:
    """File names below ``root`` that a meta info file lists: the first word of each line.

    Raises:
        AdaBMError: The file is missing, no text or empty, or a name is absolute or goes up a folder.
    """
    return _checked([line.split()[0] for line in _lines(list_file)], list_file, root)


def read_keys(list_file: str | Path, root: str | Path) -> list[str]:
    """Keys of an LMDB that its meta info file lists: as BasicSR takes them, each line up to its first dot.

    Raises:
        AdaBMError: As `read_names`.
    """
    return _checked([line.split(".")[0] for line in _lines(list_file)], list_file, root)


def _lines(list_file: str | Path) -> list[str]:
    if not os.path.isfile(list_file):
        raise not_found("meta info file", list_file)
    try:
        lines = Path(list_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AdaBMError(f"meta info file {list_file} cannot be read: {error}") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise AdaBMError(f"meta info file {list_file} is empty")
    return lines


def _checked(names: list[str], list_file: str | Path, root: str | Path) -> list[str]:
    for name in names:
        check_inside(name, root, f"meta info file {list_file}")
    return names


def check_inside(name: str, root: str | Path, where: str) -> None:
    """Raise `AdaBMError` if a name leads out of ``root``; ``where`` says who gave it."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise AdaBMError(f"{where}: {name!r} lies outside the data root {root}")


@contextmanager
def open_lmdb(root: str | Path) -> Iterator[Callable[[str], bytes]]:
    """Give a function from a key to the image file that an LMDB holds of it.

    Raises:
        AdaBMError: There is no LMDB, it is damaged or cut off, or the key isn't in it.
    """
    file = Path(root) / LMDB_DATA
    if not os.path.isfile(file):
        raise AdaBMError(f"LMDB {root} does not exist, or has no {LMDB_DATA}")
    try:
        with lmdb.open(
            str(root), readonly=True, lock=False, readahead=False, create=False
        ) as environment:
            # Reading beyond the end of the file would end the process.
            if (environment.info()["last_pgno"] + 1) * environment.stat()[
                "psize"
            ] > file.stat().st_size:
                raise AdaBMError(f"LMDB {root} is cut off: {LMDB_DATA} is shorter than it says")
            with environment.begin() as transaction:
                yield lambda key: _entry(transaction, key, root)
    except lmdb.Error as error:
        raise AdaBMError(f"LMDB {root} cannot be read: {error}") from error


def _entry(transaction: lmdb.Transaction, key: str, root: str | Path) -> bytes:
    content = transaction.get(key.encode()) if key else None
    if content is None:
        raise AdaBMError(f"LMDB {root} has no image {key!r}, which its list names")
    return content
