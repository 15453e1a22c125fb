"""Reads and writes checkpoints: plain ones of the base network, and quantized ones.

Which of the two a file is follows from its keys.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError, CheckpointError, OptionError, did_you_mean, not_found
from adabm_basicsr.files import atomic_path

PARAM_KEYS = ("params", "params_ema", "state_dict", "model")  # the last two are other trainers'
BASE_PREFIX = "network."
QUANTIZED_KEY = "layer_bits"  # in every quantized checkpoint, and in no plain one
DESCRIPTION_KEY = "adabm_basicsr"
BLUEPRINT_KEY = "blueprint"  # of a description; files that were written earlier lack it
PARALLEL_PREFIX = "module."  # what DataParallel and its like put before all keys
COMPILED_PREFIX = "_orig_mod."  # and torch.compile
MAX_LISTED = 4
WHOLE_BITS = 63  # of the largest number in a description


# Reading


def read_checkpoint(path: str | os.PathLike, param_key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict, whatever it is wrapped in.

    Args:
        path: File written by ``torch.save``: a raw state dict, or one under a key of `PARAM_KEYS`,
            with or without the prefixes ``module.`` and ``_orig_mod.``. Only tensors are loaded,
            never code.
        param_key: Which of several state dicts to take; the first of `PARAM_KEYS` by default.

    Raises:
        AdaBMError: The file is missing, unreadable or holds no such state dict, or a weight isn't
            finite.
    """
    return _state_of(path, load_tensors(path), param_key)


def _state_of(
    path: str | os.PathLike, content: object, param_key: str | None = None
) -> dict[str, Tensor]:
    """The state dict that a file holds, see `read_checkpoint`."""
    _check_param_key(path, content, param_key)
    state = unwrap(content, param_key)
    if not state:
        held = type(content).__name__
        if isinstance(content, Mapping) and content:
            held = ", ".join(repr(key) for key in content)
        raise CheckpointError(
            f"checkpoint {path} holds no weights: it holds {held}; weights are looked for under "
            f"{', '.join(PARAM_KEYS)}"
        )
    for key, value in state.items():
        # A damaged file may state any size.
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"checkpoint {path}: {key} is sparse, quantized or without values"
            )
        stated_bytes = value.numel() * value.element_size()
        if stated_bytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"checkpoint {path}: {key} is larger than what the file holds of it"
            )
        if not _is_finite(value):
            raise CheckpointError(f"checkpoint {path}: {key} holds NaN or infinite values")
    return state


def _is_finite(value: Tensor) -> bool:
    if value.is_floating_point() and value.element_size() == 1:
        value = value.float()  # torch doesn't know of smaller ones whether they are finite
    return bool(torch.isfinite(value).all())


def _check_param_key(path: str | os.PathLike, content: object, param_key: str | None) -> None:
    """Reject a key that the file doesn't have: other weights would be taken.

    BasicSR's own default and checkpoints of ours need no key.
    """
    if param_key is None or param_key == PARAM_KEYS[0]:
        return
    held = []
    if isinstance(content, Mapping):
        if DESCRIPTION_KEY in content:
            return
        held = [key for key, value in content.items() if isinstance(value, Mapping)]
    if param_key not in held:
        raise OptionError(
            f"param_key_g: {param_key!r} is no key of checkpoint {path}; "
            f"{did_you_mean(param_key, held)}"
        )


def load_tensors(path: str | os.PathLike, device: str = "cpu") -> Any:
    """``torch.load`` of tensors and plain values, never of code.

    Raises:
        CheckpointError: The file is missing or can't be read.
    """
    # pathlib raises an error for a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        raise not_found("checkpoint", os.fspath(path), CheckpointError)
    try:
        _check_whole(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever unpickling stumbles over
        raise CheckpointError(
            f"checkpoint {path} cannot be read (corrupt, or no PyTorch checkpoint): "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Why a file can't be read, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch's own text advises to run whatever code the file holds.
        return (
            "it holds something else than tensors and plain values; save a network's state_dict()"
        )
    if isinstance(error, (KeyError, IndexError, EOFError, OSError)):
        # Of codes that are no pickle's.
        return "it is something else, or damaged"
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]


def _check_whole(path: str | os.PathLike) -> None:
    """Raise ``ValueError`` for a damaged archive: torch writes checksums, but doesn't look at them.

    Files of torch before 1.6 are no archives and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    "it is compressed, as torch.save never does, and may fill the memory"
                )
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{damaged} is damaged")


def unwrap(content: object, param_key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict without its wrappings; empty if there are none.

    Args:
        content: What a checkpoint holds.
        param_key: A key to look under before those of `PARAM_KEYS`.
    """
    if not isinstance(content, Mapping):
        return {}
    keys = list(PARAM_KEYS)
    if param_key:
        keys.insert(0, param_key)
    for key in keys:
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
            break
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    # Either may be around the other.
    for prefix in (COMPILED_PREFIX, PARALLEL_PREFIX, COMPILED_PREFIX):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def read_description(path: str | os.PathLike) -> dict[str, Any] | None:
    """What a checkpoint says of how its network is built; None if it says nothing.

    Raises:
        CheckpointError: The file can't be read.
    """
    return _description_of(load_tensors(path))


def _description_of(content: object) -> dict[str, Any] | None:
    if not isinstance(content, Mapping):
        return None
    text = content.get(DESCRIPTION_KEY)
    if not isinstance(text, str):
        return None
    try:
        return parse_description(text)
    except ValueError:
        return None


def parse_description(text: str) -> dict[str, Any]:
    """What a file says of its network.

    Raises:
        ValueError: It is no JSON of sections, or holds whole numbers that no tensor could.
    """
    try:
        description = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(description, dict):
        raise ValueError("it is no section of keys")
    return description


def _whole_number(digits: str) -> int:
    value = int(digits)
    if value.bit_length() > WHOLE_BITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return value


def read_described(path: str | os.PathLike) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """What `read_description` and `read_checkpoint` give, of a file that is read once.

    Raises:
        AdaBMError: See there.
    """
    content = load_tensors(path)
    return _description_of(content), _state_of(path, content)


# Fitting a network


def load_checkpoint(
    net: nn.Module, path: str | os.PathLike, param_key: str | None = None
) -> nn.Module:
    """Load a plain or quantized checkpoint into a quantized network, or a plain one into any.

    Args:
        net: The network; changed in place.
        path: The checkpoint.
        param_key: Which of several state dicts to take, see `read_checkpoint`.

    Returns:
        ``net``.

    Raises:
        AdaBMError: The file can't be read or doesn't fit; the message says how.
    """
    content = load_tensors(path)
    state = _state_of(path, content, param_key)
    description = _description_of(content) or {}
    load_saved: Any = getattr(net, "load_saved", None)
    try:
        if load_saved is not None:
            load_saved(state, description)
        else:
            expected = net.state_dict()
            state = named_as(expected, state)
            check_same(expected, state, type(net).__name__)
            net.load_state_dict(state)
    except AdaBMError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return net


def is_quantized(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` was saved from a quantized network."""
    return QUANTIZED_KEY in state


def named_as(expected: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the prefix that `unwrap` took off, where that is a network's own.

    Such a network has a child ``module``.
    """
    for key in expected:
        if not key.startswith(PARALLEL_PREFIX) or key in state:
            return state
    return {PARALLEL_PREFIX + key: value for key, value in state.items()}


def check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Raise `CheckpointError` if keys, shapes or kinds of values of two state dicts differ.

    Floats of other precisions are of one kind.

    Args:
        expected: The state that is needed.
        found: The state that there is.
        name: What ``expected`` belongs to, for the message.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshapen = []
    of_other_kind = []
    for key, wanted in expected.items():
        if key not in found:
            continue
        given = found[key]
        if given.shape != wanted.shape:
            has = tuple(given.shape)
            needs = tuple(wanted.shape)
            misshapen.append(f"{key} is {has} instead of {needs}")
        elif not _holds(wanted, given):
            of_other_kind.append(f"{key} is {_kind(given)} instead of {_kind(wanted)}")

    differences = []
    for kind, keys in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshapen),
        ("of another kind", of_other_kind),
    ):
        listed = ", ".join(keys[:MAX_LISTED])
        if len(keys) > MAX_LISTED:
            listed += ", ..."
        if keys:
            differences.append(f"{len(keys)} {kind} ({listed})")
    if differences:
        raise CheckpointError(f"the checkpoint doesn't fit {name}: {'; '.join(differences)}")


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _holds(own: Tensor, value: Tensor) -> bool:
    """Whether a tensor like ``own`` takes ``value`` but for its precision."""
    if value.layout is not torch.strided or value.is_quantized:
        return False
    if own.dtype == value.dtype:
        return True
    if not torch.can_cast(value.dtype, own.dtype):
        return False
    if own.is_floating_point() or own.is_complex() or own.is_meta:
        return True
    # Whole numbers would wrap around.
    return torch.equal(value.to(own.dtype).to(value.dtype), value)


# Writing


def save_checkpoint(net: nn.Module, path: str | os.PathLike) -> None:
    """Write ``{"params": state dict}``, as BasicSR does, atomically.

    Beside it stands what rebuilds a network that was built from options, as JSON; see
    `read_description`.

    Args:
        net: The network; one in `DataParallel` or `DistributedDataParallel` is saved without them.
        path: The file to write.

    Raises:
        AdaBMError: The file can't be written; a previous one is left whole.
    """
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        net = net.module
    state = {key: value.cpu() for key, value in net.state_dict().items()}
    content: dict[str, object] = {PARAM_KEYS[0]: state}
    description = getattr(net, "description", None)
    if description is not None:
        content[DESCRIPTION_KEY] = json.dumps(description)
    save_tensors(content, path)


def save_tensors(content: object, path: str | os.PathLike) -> None:
    """``torch.save``, atomically.

    Raises:
        AdaBMError: The file can't be written; a previous one is left whole.
    """
    # Into memory first: torch's own files don't say why they can't be written.
    written = io.BytesIO()
    torch.save(content, written)
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.getbuffer())
