"""``adabm-basicsr autoload on``: BasicSR's own entry points find the plugin, through one file in the environment."""

from __future__ import annotations

import argparse
import os
import site
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path

FILE_NAME = "adabm_basicsr_autoload.pth"
# Python runs this line at start-up. The package imports nothing heavy; without it (uninstalled) the line does nothing.
LINE = "import importlib.util; importlib.util.find_spec('adabm_basicsr') and __import__('adabm_basicsr')\n"


def autoload_path() -> Path:
    """Where the file goes: the environment's site-packages, or the user's where that can't be written."""
    folder = Path(sysconfig.get_path("purelib"))
    return (folder if os.access(folder, os.W_OK) else Path(site.getusersitepackages())) / FILE_NAME


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr autoload``."""
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr autoload", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("state", choices=["on", "off", "status"])
    state = parser.parse_args(argv).state
    path = autoload_path()
    if state == "on":
        with atomic_path(path) as temporary:
            temporary.write_text(LINE)
    elif state == "off":
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise AdaBMError(f"cannot remove {path}: {error.strerror}") from error
    print(f"autoload is {'on' if path.is_file() else 'off'} ({path})")
