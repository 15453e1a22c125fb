"""``adabm-basicsr autoload on``: BasicSR's own entry points find the plugin.

One file in the environment does it.
"""

from __future__ import annotations

import os
import site
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.commands.flags import make_parser
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path

FILE_NAME = "adabm_basicsr_autoload.pth"
# Python runs this line at start-up. The package imports nothing heavy; where it is uninstalled, the
# line does nothing.
LINE = (
    "import importlib.util; "
    "importlib.util.find_spec('adabm_basicsr') and __import__('adabm_basicsr')\n"
)


def autoload_path() -> Path:
    """Where the file goes: the environment's site-packages.

    It is the user's where the environment's can't be written.
    """
    folder = Path(sysconfig.get_path("purelib"))
    if not os.access(folder, os.W_OK):
        folder = Path(site.getusersitepackages())
    return folder / FILE_NAME


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("autoload")
    parser.add_argument("state", choices=["on", "off", "status"])
    args = parser.parse_args(argv)
    path = autoload_path()
    if args.state == "on":
        with atomic_path(path) as temporary:
            temporary.write_text(LINE)
    elif args.state == "off":
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise AdaBMError(f"cannot remove {path}: {error.strerror}") from error
    state = "on" if path.is_file() else "off"
    print(f"autoload is {state} ({path})")
