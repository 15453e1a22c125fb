"""A second device that computes, for tests of what device tensors are on: no GPU is needed.

Its tensors say that they are on ``simulated:0`` and hold their values in a tensor of the CPU. They
are those of the CPU, to the bit; an operation on tensors of both devices fails as it does on a GPU.
It draws no random numbers, as those of a GPU are others than a CPU's, and sorts equal values into
another order than the CPU does.
"""

import copy

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
ATEN = torch.ops.aten
# What takes values from one device to the other.
MOVES = {ATEN._to_copy.default, ATEN.copy_.default, ATEN._copy_from.default}
# What needs values of the device on the host, or in order to know how many there are.
READS = {
    ATEN._local_scalar_dense.default,
    ATEN._unique2.default,
    ATEN.equal.default,
    ATEN.masked_select.default,
    ATEN.nonzero.default,
    ATEN.repeat_interleave.Tensor,
    ATEN.unique_dim.default,
}
# By a mask, these look up how many places it has.
BY_INDEX = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
MAY_WAIT = MOVES | READS | BY_INDEX


class _Backend:
    """What torch asks of a device; there is one while ``mode``, a `SecondDevice`, is active."""

    mode = None

    def is_initialized(self):
        return True

    def is_available(self):
        return self.mode is not None

    def current_device(self):
        return 0

    def device_count(self):
        return int(self.is_available())

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self):
        return BACKEND.is_available()

    def has_primary_context(self, index):
        return True

    def is_built(self):
        return True


BACKEND = _Backend()
_setup_privateuseone_for_python_backend(NAME, BACKEND, _Hook())
DEVICE = torch.device(NAME, 0)


class OnSecondDevice(torch.Tensor):
    """A tensor of the second device; ``held`` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self):
        return f"OnSecondDevice({self.held})"

    def __deepcopy__(self, memo):
        copied = OnSecondDevice(copy.deepcopy(self.held, memo))
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def tolist(self):
        return self.cpu().tolist()

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return OnSecondDevice(parts["held"])


class SecondDevice(TorchDispatchMode):
    """Mode in which there is a second device.

    Attributes:
        waits: What the program had to wait for, until the device had computed all that came before:
            names of operations. Copies are among them, as they are from and to a GPU.
    """

    def __init__(self):
        super().__init__()
        self.waits = []

    def __enter__(self):
        BACKEND.mode = self
        return super().__enter__()

    def __exit__(self, *error):
        BACKEND.mode = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = _run(func, args, kwargs)
        if func in MAY_WAIT and _waits(func, args, made):
            self.waits.append(str(func))
        return made


def _waits(func, args, made):
    on_device = [isinstance(tensor, OnSecondDevice) for tensor in _tensors((args, made))]
    if func in MOVES:
        return any(on_device) and not all(on_device)
    if not any(on_device):
        return False
    if func in BY_INDEX:
        return any(index.dtype is torch.bool for index in _tensors(args[1]))
    return True


def _tensors(values):
    """Tensors in what a function takes or gives; quicker than torch's own way to find them."""
    if isinstance(values, torch.Tensor):
        return [values]
    found = []
    if isinstance(values, (tuple, list)):
        for value in values:
            found.extend(_tensors(value))
    return found


def _map_tensors(function, values):
    """The same values with tensors replaced."""
    if isinstance(values, torch.Tensor):
        return function(values)
    if isinstance(values, (tuple, list)):
        return type(values)(_map_tensors(function, value) for value in values)
    return values


def _run(func, args, kwargs):
    """What a function gives, on the device that it is given on with a GPU."""
    tensors = _tensors((args, tuple(kwargs.values())))
    here = [tensor for tensor in tensors if isinstance(tensor, OnSecondDevice)]
    asked = kwargs.get("device")
    if here or (asked is not None and torch.device(asked).type == NAME):
        _check_not_random(func)
    if not here and asked is None:
        return func(*args, **kwargs)
    if here and func not in MOVES:
        _check_same_device(func, tensors)
    to_device = bool(here)
    held_kwargs = {key: _map_tensors(_held, value) for key, value in kwargs.items()}
    if here and func is ATEN.sort.default:
        func = _sort
    if asked is not None:
        to_device = torch.device(asked).type == NAME
        held_kwargs["device"] = "cpu"
    made = func(*_map_tensors(_held, args), **held_kwargs)
    if func is ATEN.copy_.default:
        return args[0]
    if not to_device:
        return made
    # What is changed in place stays the tensor that it was.
    known = {id(tensor.held): tensor for tensor in here}

    def on_device(tensor):
        if id(tensor) in known:
            return known[id(tensor)]
        return OnSecondDevice(tensor)

    return _map_tensors(on_device, made)


def _check_same_device(func, tensors):
    """Fail on tensors of both devices, as GPUs do; value by value they take numbers of the CPU."""
    for tensor in tensors:
        is_number = tensor.dim() == 0 and torch.Tag.pointwise in func.tags
        if not is_number and not isinstance(tensor, OnSecondDevice):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found at least two "
                f"devices, {DEVICE} and cpu"
            )


def _check_not_random(func):
    """Fail on random numbers of the device."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(f"{func}: random numbers of {DEVICE} aren't those of the CPU")


def _sort(x, dim=-1, descending=False):
    """A sort that isn't stable: of equal values the last comes first."""
    values, places = torch.sort(x.flip(dim), dim=dim, descending=descending, stable=True)
    return values, x.shape[dim] - 1 - places


# Where torch makes tensors of numbers, it goes past modes.


def _empty_strided(size, stride, dtype=None, **options):
    return OnSecondDevice(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    BACKEND.mode.waits.append("aten._copy_from.default")
    _held(target).copy_(_held(source))
    return target


def _held(tensor):
    if isinstance(tensor, OnSecondDevice):
        return tensor.held
    return tensor


_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
