"""Where a user's own network is built and run: what its code raises becomes one line.

The line names the module, what was raised, and file and line of the user's code, as in
``blocks.0 (Block) raises IndexError: ... (my_arch.py:12)``.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from adabm_basicsr.errors import AdaBMError, first_line

PYTHON = Path(traceback.__file__).parent
TORCH = Path(torch.__file__).parent
PACKAGE = Path(__file__).parents[1]
ARCHS = PACKAGE / "archs"  # networks, as those of users are
MAX_LENGTH = 240  # characters of an error's own message
# How torch's CPU allocator says, in a RuntimeError, that memory ran out.
NO_MEMORY = "can't allocate memory"
FRAME = re.compile(r'File "(.+?)", line (\d+)')


@contextmanager
def users_code(network: nn.Module | None, sentence: str, way_out: str = "") -> Iterator[None]:
    """Within this context a user's code runs; what it raises becomes an `AdaBMError`.

    An `AdaBMError` passes as it is, and so does memory that ran out.

    Args:
        network: The user's network; None before it is built.
        sentence: What can't be done, the beginning of the message.
        way_out: The end of the message.

    Raises:
        AdaBMError: The code raised something.
    """
    try:
        yield
    except AdaBMError:
        raise
    except Exception as error:  # whatever the network's own code raises
        if is_out_of_memory(error):
            raise
        raise AdaBMError(f"{sentence}: {failure(error, network)}{way_out}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of which no network is to blame."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY in str(error)


def failure(
    error: Exception,
    network: nn.Module | None = None,
    find_place: Callable[[], str] | None = None,
) -> str:
    """What a user's code raised and where, in one line.

    Args:
        error: What was raised.
        network: The network whose module is named, where one of them raised it.
        find_place: Finds file and line where the error itself doesn't show them.
    """
    module, place = _origin(error, network)
    if find_place is not None:
        place = place or find_place()
    text = message(error)
    if module:
        text = f"{module} raises {text}"
    if place:
        text = f"{text} ({place})"
    return text


def message(error: Exception) -> str:
    """Type and first line of an error of other code."""
    kind = type(error).__name__
    if not str(error).strip():
        return kind
    line = " ".join(first_line(error).split())
    # Hints at torch's own settings don't help.
    line = line.partition(" Hint: ")[0]
    if len(line) > MAX_LENGTH:
        line = f"{line[:MAX_LENGTH]}..."
    return f"{kind}: {line}"


def _origin(error: Exception, network: nn.Module | None) -> tuple[str, str]:
    """The module of ``network`` that raised an error, and file and line of the user's code.

    Either may be empty: it may be the network itself, and nothing but torch's modules may have run.
    """
    names: dict[nn.Module, str] = {}
    if network is not None:
        for name, module in network.named_modules():
            names[module] = name
    running: nn.Module | None = None
    owner: nn.Module | None = None
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            running = module
        if is_users(frame.f_code.co_filename):
            owner = running
            place = short_place(frame.f_code.co_filename, line)
    if not place:
        owner = running
    name = names.get(owner, "") if owner is not None else ""
    if not name:
        # The network itself is in the sentence.
        return "", place
    return f"{name} ({type(owner).__name__})", place


def is_users(filename: str) -> bool:
    """Whether a file holds a network's code, rather than Python's, torch's or ours."""
    path = Path(filename)
    if path.is_relative_to(ARCHS):
        return True
    if path.is_relative_to(PYTHON) and "site-packages" not in path.parts:
        return False
    is_library = path.is_relative_to(TORCH) or path.is_relative_to(PACKAGE)
    return not is_library and not filename.startswith("<frozen")


def short_place(filename: str, line: int) -> str:
    """File and line as a message names them."""
    path = Path(filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"


def last_place(text: str) -> str:
    """File and line of the last of the user's frames in a printed traceback; may be empty."""
    place = ""
    for filename, line in FRAME.findall(text):
        if is_users(filename):
            place = short_place(filename, int(line))
    return place
