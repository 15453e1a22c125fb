"""Rewrites a network before it is quantized, where its convolutions are hidden or split.

Its output stays the same. Weight and spectral normalisation are baked in and batch normalisation is
folded for any network; other rewritings stand in a table by module type, which
`register_preparation` extends.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook

from adabm_basicsr.errors import AdaBMError, CheckpointError
from adabm_basicsr.quantization.structure.functional import (
    FunctionLayer,
    apply_functions,
    find_functions,
)
from adabm_basicsr.quantization.structure.tracing import BATCH_NORMS, trace_network
from adabm_basicsr.quantization.user_code import is_out_of_memory, message, users_code

Network = TypeVar("Network", bound=nn.Module)
Rewriting = Callable[[nn.Module], nn.Module]

_REWRITINGS: dict[type[nn.Module], Rewriting] = {}
# Of the output's largest value; what another order of float32 operations may change.
TOLERANCE = 1e-3
ORIGINAL = "_orig_mod"  # attribute of what torch.compile makes of a module


def register_preparation(kind: type[nn.Module]) -> Callable[[Rewriting], Rewriting]:
    """Decorator: modules of exactly type ``kind`` are replaced by what the function makes of them.

    The new module must compute what the old one does in evaluation mode, on layers that can be
    quantized.
    """

    def register(rewrite: Rewriting) -> Rewriting:
        _REWRITINGS[kind] = rewrite
        return rewrite

    return register


def copy_of(network: Network) -> Network:
    """A deep copy of ``network``, also of what its parameters were made into.

    Old normalisations keep a weight together with its graph, which `copy.deepcopy` rejects.

    Raises:
        AdaBMError: A module keeps something that can't be copied, or keeps it in ``__slots__``,
            which copies of modules lose.
    """
    copies = {}
    for name, module in network.named_modules():
        slots = _slots(module)
        if slots:
            raise AdaBMError(
                f"{name} ({type(module).__name__}) keeps {slots[0]!r} in __slots__, which copies "
                "of a module lose: make it an attribute"
            )
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                copies[id(value)] = value.detach().clone()
    try:
        # Without gradients, as modules of TorchScript copy their weights as any tensors.
        with torch.no_grad():
            return copy.deepcopy(network, copies)
    except Exception as error:  # whatever an attribute's own code raises
        if is_out_of_memory(error):
            raise
        raise AdaBMError(
            f"{type(network).__name__} cannot be copied: {_uncopied(network)}{message(error)}"
        ) from error


def _uncopied(network: nn.Module) -> str:
    """Name of the attribute that can't be copied, the beginning of a message; may be empty."""
    own = vars(nn.Module())
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key in own:
                continue
            try:
                copy.deepcopy(value)
            except Exception:  # the same again
                return f"{name}.{key}: ".lstrip(".")
    return ""


def _slots(module: nn.Module) -> list[str]:
    """Names that the class of a module, or one that it inherits from, keeps in ``__slots__``."""
    names: list[str] = []
    for kind in type(module).__mro__:
        declared = vars(kind).get("__slots__", ())
        names.extend([declared] if isinstance(declared, str) else declared)
    return names


def uncompiled(network: nn.Module) -> nn.Module:
    """``network`` without what ``torch.compile`` made of it as a whole; changed in place.

    Compiled code doesn't see that layers are watched and replaced. Compiled modules inside it are
    the business of `Preparation`, as checkpoints have their names.

    Raises:
        AdaBMError: A module is one of TorchScript, whose layers are code.
    """
    network = getattr(network, ORIGINAL, network)
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise AdaBMError(
                f"{name or 'the network'} is made by TorchScript (torch.jit.script or trace), and "
                "its layers can't be replaced: give the module that it was made of"
            )
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None
        forward = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if inspect.ismethod(forward) and forward.__func__ is type(module).forward:
            del module.forward
    return network


def fill_lazy_layers(network: nn.Module, example: Tensor) -> None:
    """Give layers that take their shape from their first input (``LazyConv2d``) their weights."""
    if not any(is_lazy(parameter) for parameter in network.parameters()):
        return
    sentence = f"{type(network).__name__} cannot be run on an image of shape {tuple(example.shape)}"
    with users_code(network, sentence), torch.no_grad():
        network(example.clone())


@dataclass
class Preparation:
    """What has to be done to a network before quantization, and to later copies of it.

    Attributes:
        rewritten: Names of modules that are replaced by the table of rewritings, or that were
            compiled.
        normalised: Names of layers whose normalised weight is baked in.
        functions: Functions called with parameters that are made into layers.
        folded: Names of layers, each with the batch normalisation that is folded into it.
    """

    rewritten: list[str] = field(default_factory=list)
    normalised: list[str] = field(default_factory=list)
    functions: list[FunctionLayer] = field(default_factory=list)
    folded: list[tuple[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rewritten or self.normalised or self.functions or self.folded)

    def apply(self, network: nn.Module) -> nn.Module:
        """Rewrite ``network`` in place and return it."""
        for name in reversed(self.rewritten):
            # What is inside of others comes first.
            module = network.get_submodule(name)
            rewrite = _rewriting(module)
            assert rewrite is not None  # it was found in the same network
            new = rewrite(module).eval().requires_grad_(False)
            _replace(network, module, new)
        for name in self.normalised:
            _bake(network.get_submodule(name))
        apply_functions(network, self.functions)
        self.apply_folds(network)
        return network

    def check(self, network: nn.Module) -> None:
        """Check that ``network`` has what is to be rewritten.

        Raises:
            CheckpointError: It hasn't.
        """
        modules = dict(network.named_modules())
        for name in self.rewritten:
            if not name or name not in modules or _rewriting(modules[name]) is None:
                raise _not_there("rewritten", name)
        for name in self.normalised:
            if name not in modules or not _normalises_weight(modules[name]):
                raise _not_there("normalised", name)
        for function in self.functions:
            if not function.fits(network):
                raise _not_there("made a layer", f"{function.owner}.{function.weight}".lstrip("."))
        for layer, norm in self.folded:
            # A layer may be part of what a rewriting makes.
            if not isinstance(modules.get(norm), BATCH_NORMS):
                raise _not_there("folded", f"{layer}, {norm}")

    def apply_folds(self, network: nn.Module) -> None:
        """Fold batch normalisation in ``network`` in place, which is rewritten otherwise."""
        for layer_name, norm_name in self.folded:
            layer = network.get_submodule(layer_name)
            norm = network.get_submodule(norm_name)
            _fold(layer, norm)
            _replace(network, norm, nn.Identity())


def _rewriting(module: nn.Module) -> Rewriting | None:
    # By its attribute: to import its class takes a second.
    if hasattr(module, ORIGINAL):
        return _original
    return _REWRITINGS.get(type(module))


def _original(compiled: Any) -> nn.Module:
    return compiled._orig_mod


def _not_there(what: str, name: str) -> CheckpointError:
    return CheckpointError(f"the network has nothing to be {what} at {name!r}")


def find_preparation(network: nn.Module, example: Tensor, fold: bool) -> Preparation:
    """What has to be done to ``network`` before quantization.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)``.
        fold: Whether to fold batch normalisation into the layers before it.
    """
    preparation = Preparation()
    has_batch_norm = False
    for name, module in network.named_modules():
        if name and _rewriting(module):
            preparation.rewritten.append(name)
        if _normalises_weight(module):
            preparation.normalised.append(name)
        if isinstance(module, BATCH_NORMS):
            has_batch_norm = True
    preparation.functions = _functions_outside(preparation.rewritten, network, example)
    if not fold or not has_batch_norm:
        return preparation

    probe = copy_of(network)
    _fill_statistics(probe)
    trial = preparation.apply(copy_of(probe))
    for layer, norm in trace_network(trial, example).normalised:
        if _can_fold(trial.get_submodule(layer), trial.get_submodule(norm)):
            preparation.folded.append((layer, norm))
    preparation.apply_folds(trial)
    # The layer's output may have been used elsewhere too; then folding isn't the same.
    if not _same_output(trial, probe, example):
        preparation.folded = []
    return preparation


def _functions_outside(
    rewritten: Sequence[str], network: nn.Module, example: Tensor
) -> list[FunctionLayer]:
    """Functions that layers can stand for, but for those of modules that are rewritten."""
    inside = tuple(f"{name}." for name in rewritten)
    functions = []
    for function in find_functions(network, example):
        if not f"{function.owner}.".startswith(inside):
            functions.append(function)
    return functions


@torch.no_grad()
def _fill_statistics(network: nn.Module) -> None:
    """Give batch normalisation statistics as if it had been trained.

    Fresh ones change nothing, and a checkpoint may come later.
    """
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if not isinstance(norm, BATCH_NORMS):
            continue
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def _same_output(network: nn.Module, unprepared: nn.Module, example: Tensor) -> bool:
    if example.is_meta:
        return True
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(example.shape, generator=generator).to(example.device)
    sentence = f"{type(network).__name__} cannot be run on an image of random pixels"
    with users_code(network, sentence), torch.no_grad():
        output = network(image.clone())  # networks may change their input in place
        expected = unprepared(image)
    difference = (output - expected).abs().max()
    return bool(difference <= TOLERANCE * expected.abs().max())


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands; a shared module stands at several places."""
    for parent in list(network.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _can_fold(layer: nn.Module, norm: Any) -> bool:
    is_foldable = isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear))
    return is_foldable and norm.running_mean is not None


def _fold(layer: Any, norm: Any) -> None:
    """Fold batch normalisation ``norm`` into weight and bias of the ``layer`` before it.

    Args:
        layer: A convolution, transposed convolution or linear layer.
        norm: One of `BATCH_NORMS`, with statistics.
    """
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
    else:
        is_transposed = isinstance(layer, nn.ConvTranspose2d)
        weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, *statistics, transpose=is_transposed
        )
    layer.weight = weight.requires_grad_(False)
    layer.bias = bias.requires_grad_(False)


def _normalises_weight(module: Any) -> bool:
    if _old_removal(module) is not None:
        return True
    if not parametrize.is_parametrized(module):
        return False
    return list(module.parametrizations) == ["weight"]


def _old_removal(module: nn.Module) -> Rewriting | None:
    """What removes a normalisation of the kind before parametrizations, if ``module`` has one."""
    if "weight_g" in module._parameters and "weight_v" in module._parameters:
        return remove_weight_norm
    if "weight_orig" in module._parameters and "weight_u" in module._buffers:
        return remove_spectral_norm
    return None


def _bake(module: Any) -> None:
    """Replace a weight that is computed anew in each pass by its value."""
    remove = _old_removal(module)
    if remove is not None:
        remove(module)
        module.weight.requires_grad_(False)
        _forget_spectral_norm(module)
        return
    # remove_parametrizations would take the weight from copies of the module too, which share its
    # class.
    weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.weight = weight


def _forget_spectral_norm(module: nn.Module) -> None:
    """Remove the hook that spectral normalisation leaves behind.

    It would look for the old weight in a checkpoint.
    """
    hooks = module._load_state_dict_pre_hooks
    for key, held in list(hooks.items()):
        hook = getattr(held, "hook", held)
        if isinstance(hook, SpectralNormLoadStateDictPreHook):
            del hooks[key]
