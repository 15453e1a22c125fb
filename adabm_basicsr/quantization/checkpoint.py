"""Reads and writes checkpoints: plain ones of the base network and quantized ones, told apart by their content."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError, did_you_mean, not_found
from adabm_basicsr.files import atomic_path

PARAM_KEYS = ("params", "params_ema", "state_dict", "model")  # the last two are other trainers'
BASE_PREFIX = "network."
QUANTIZED_KEY = "layer_bits"  # in every quantized checkpoint, and in no plain one
DESCRIPTION_KEY = "adabm_basicsr"
PARALLEL_PREFIX = "module."  # what DataParallel and its like put before all keys
MAX_LISTED = 4


def read_checkpoint(path: str | os.PathLike, param_key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict, whatever it is wrapped in.

    Args:
        path: File written by ``torch.save``: a raw state dict, or one under a key of `PARAM_KEYS`, with or without the
            prefix ``module.``. Only tensors are loaded, never code.
        param_key: Which of several state dicts to take; the first of `PARAM_KEYS` by default.

    Raises:
        AdaBMError: The file is missing, unreadable or holds no such state dict, or a weight isn't finite.
    """
    content = load_tensors(path)
    _check_param_key(path, content, param_key)
    state = unwrap(content, param_key)
    if not state:
        held = (
            ", ".join(map(repr, content))
            if isinstance(content, Mapping) and content
            else type(content).__name__
        )
        raise AdaBMError(
            f"checkpoint {path} holds no weights: it holds {held}; weights are looked for under {', '.join(PARAM_KEYS)}"
        )
    for key, value in state.items():
        if (
            value.numel() * value.element_size() > value.untyped_storage().nbytes()
        ):  # it may say any size
            raise AdaBMError(f"checkpoint {path}: {key} is larger than what the file holds of it")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise AdaBMError(f"checkpoint {path}: {key} holds NaN or infinite values")
    return state


def _check_param_key(path: str | os.PathLike, content: object, param_key: str | None) -> None:
    """A misspelt key would give other weights; BasicSR's own default and checkpoints of ours need no key."""
    if param_key in (None, PARAM_KEYS[0]) or (
        isinstance(content, Mapping) and DESCRIPTION_KEY in content
    ):
        return
    held = (
        [key for key, value in content.items() if isinstance(value, Mapping)]
        if isinstance(content, Mapping)
        else []
    )
    if param_key not in held:
        raise AdaBMError(
            f"param_key_g: {param_key!r} is no key of checkpoint {path}; {did_you_mean(param_key, held)}"
        )


def load_tensors(path: str | os.PathLike, device: str = "cpu") -> object:
    """``torch.load`` of tensors and plain values, never of code.

    Raises:
        AdaBMError: The file is missing or can't be read.
    """
    if not os.path.isfile(path):
        raise not_found("checkpoint", path)
    try:
        _check_whole(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever unpickling stumbles over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(
            error, pickle.UnpicklingError
        ):  # torch advises to run whatever code the file holds
            reason = "it holds something else than tensors and plain values; save a network's state_dict()"
        elif isinstance(
            error, (KeyError, IndexError, EOFError, OSError)
        ):  # of codes that are no pickle's
            reason = "it is something else, or damaged"
        raise AdaBMError(
            f"checkpoint {path} cannot be read (corrupt, or no PyTorch checkpoint): {reason}"
        ) from error


def _check_whole(path: str | os.PathLike) -> None:
    """Raise ``ValueError`` for a damaged archive: torch writes checksums, but doesn't look at them.

    Files of torch before 1.6 are no archives and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, as torch.save never does, and may fill the memory")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")


def unwrap(content: object, param_key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict without its wrappings; empty if there are none."""
    keys = (param_key, *PARAM_KEYS) if param_key else PARAM_KEYS
    if not isinstance(content, Mapping):
        return {}
    content = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    parallel = all(key.startswith(PARALLEL_PREFIX) for key in state)
    return (
        {key.removeprefix(PARALLEL_PREFIX): value for key, value in state.items()}
        if parallel
        else state
    )


def _named_as(expected: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the prefix that `unwrap` took off where it is a network's own: it has a child ``module``."""
    missing = all(key.startswith(PARALLEL_PREFIX) and key not in state for key in expected)
    return {PARALLEL_PREFIX + key: value for key, value in state.items()} if missing else state


def is_quantized(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` was saved from a quantized network."""
    return QUANTIZED_KEY in state


def fit_state(
    net: nn.Module, state: Mapping[str, Tensor], strict: bool = True
) -> dict[str, Tensor]:
    """The full state of the quantized network ``net`` that a plain or quantized state dict stands for.

    A plain one fills in the base network's weights and leaves the quantizers uncalibrated.

    Raises:
        AdaBMError: Keys, shapes or bits differ and ``strict`` is on; the message lists how.
    """
    state = unwrap(state)
    own = net.state_dict()
    base_name = type(net.network).__name__
    if is_quantized(state):
        if strict:
            _check_layers(net, state[QUANTIZED_KEY])
            check_same(own, state, f"quantized {base_name}")
            _check_bits(net, state[QUANTIZED_KEY])
        return state
    expected = net.base_state()
    state = _named_as(expected, state)
    if strict:
        check_same(expected, state, base_name)
    base = {BASE_PREFIX + key: value for key, value in net.prepared_state(state, strict).items()}
    return {**own, "stage": torch.zeros_like(own["stage"]), **base}


def check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Raise `AdaBMError` if keys or shapes of two state dicts differ; ``name`` says what ``expected`` belongs to."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    told = [f"{len(keys)} {what} ({_listed(keys)})" for what, keys in parts if keys]
    if told:
        raise AdaBMError(f"the checkpoint doesn't fit {name}: {'; '.join(told)}")


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_LISTED]) + (", ..." if len(keys) > MAX_LISTED else "")


def _check_layers(net: nn.Module, saved: Tensor) -> None:
    if len(saved) != len(net.layer_bits):
        raise AdaBMError(
            f"the checkpoint was quantized with other options: it has {len(saved)} quantized layers, the options give "
            f"{len(net.layer_bits)}; the same fully_quantized, exclude, head, tail, body and blocks are needed"
        )


def _check_bits(net: nn.Module, saved: Tensor) -> None:
    wanted = net.layer_bits.tolist()
    for name, have, want in zip(net.plan.layers, saved.tolist(), wanted):
        if have != want:
            raise AdaBMError(
                f"the checkpoint was quantized with other options: {name} has w_bits {have[0]}, a_bits {have[1]}"
                f"{', adaptive' if have[2] else ''}; the options say w_bits {want[0]}, a_bits {want[1]}"
                f"{', adaptive' if want[2] else ''}"
            )


def save_checkpoint(net: nn.Module, path: str | os.PathLike) -> None:
    """Write ``{"params": state dict}``, as BasicSR does, atomically.

    Beside it stands what rebuilds a network that was built from options, as JSON; see `read_description`.

    Raises:
        AdaBMError: The file can't be written; a previous one is left whole.
    """
    net = (
        net.module
        if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        else net
    )
    state = {key: value.cpu() for key, value in net.state_dict().items()}
    description = getattr(net, "description", None)
    described = {} if description is None else {DESCRIPTION_KEY: json.dumps(description)}
    save_tensors({PARAM_KEYS[0]: state, **described}, path)


def save_tensors(content: object, path: str | os.PathLike) -> None:
    """``torch.save``, atomically.

    Raises:
        AdaBMError: The file can't be written; a previous one is left whole.
    """
    written = io.BytesIO()  # torch's own files don't say why they can't be written
    torch.save(content, written)
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def read_description(path: str | os.PathLike) -> dict | None:
    """What a checkpoint says of how its network is built; None if it says nothing.

    Raises:
        AdaBMError: The file can't be read.
    """
    content = load_tensors(path)
    told = content.get(DESCRIPTION_KEY) if isinstance(content, Mapping) else None
    try:
        described = json.loads(told) if isinstance(told, str) else None
    except ValueError:
        described = None
    return described if isinstance(described, dict) else None


def load_checkpoint(
    net: nn.Module, path: str | os.PathLike, param_key: str | None = None
) -> nn.Module:
    """Load a plain or quantized checkpoint into a quantized network, or a plain one into any network.

    Raises:
        AdaBMError: The file can't be read or doesn't fit; the message says how.
    """
    state = read_checkpoint(path, param_key)
    try:
        if not hasattr(net, "plan"):
            expected = net.state_dict()
            state = _named_as(expected, state)
            check_same(expected, state, type(net).__name__)
        net.load_state_dict(state)
    except AdaBMError as error:
        raise AdaBMError(f"{path}: {error}") from error
    return net
