"""Rewrites a network before it is quantized, where its convolutions are hidden or split, without changing its output.

Weight and spectral normalisation are baked in and batch normalisation is folded for any network; other rewritings stand
in a table by module type, which `register_preparation` extends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook

from adabm_basicsr.quantization.structure.tracing import BATCH_NORMS, trace_network

_REWRITINGS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {}
TOLERANCE = (
    1e-3  # of the output's largest value; what another order of float32 operations may change
)


def register_preparation(kind: type[nn.Module]) -> Callable:
    """Decorator: modules of exactly type ``kind`` are replaced by what the decorated function makes of them.

    The new module must compute what the old one does in evaluation mode, on layers that can be quantized.
    """

    def register(rewrite: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
        _REWRITINGS[kind] = rewrite
        return rewrite

    return register


def copy_of(network: nn.Module) -> nn.Module:
    """A deep copy, of what parameters were made into as well: old normalisations keep a weight with its graph."""
    tensors = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]
    return copy.deepcopy(
        network, {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}
    )


class Preparation:
    """What has to be done to a network before quantization: decided once, done to it and to later copies of it.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)``.
        fold: Whether to fold batch normalisation into the layers before it.
    """

    def __init__(self, network: nn.Module, example: Tensor, fold: bool) -> None:
        named = list(network.named_modules())
        self.rewritten = [name for name, module in named if name and type(module) in _REWRITINGS]
        self.normalised = [name for name, module in named if _normalises_weight(module)]
        self.folded: list[tuple[str, str]] = []
        if fold and any(isinstance(module, BATCH_NORMS) for _, module in named):
            probe = _as_if_trained(copy_of(network))
            trial = self.apply(copy_of(probe))
            self.folded = [
                pair for pair in trace_network(trial, example).normalised if _can_fold(trial, *pair)
            ]
            # The layer's output may have been used elsewhere too; then folding isn't the same.
            if not _same_output(self._fold(trial), probe, example):
                self.folded = []

    def __bool__(self) -> bool:
        return bool(self.rewritten or self.normalised or self.folded)

    def apply(self, network: nn.Module) -> nn.Module:
        """Rewrite ``network`` in place and return it."""
        for name in self.rewritten:
            module = network.get_submodule(name)
            _replace(network, name, _REWRITINGS[type(module)](module).eval().requires_grad_(False))
        for name in self.normalised:
            _bake(network.get_submodule(name))
        return self._fold(network)

    def _fold(self, network: nn.Module) -> nn.Module:
        for layer, norm in self.folded:
            _fold(network.get_submodule(layer), network.get_submodule(norm))
            _replace(network, norm, nn.Identity())
        return network


@torch.no_grad()
def _as_if_trained(network: nn.Module) -> nn.Module:
    """Give batch normalisation other statistics: fresh ones change nothing, and a checkpoint may come later."""
    generator = torch.Generator().manual_seed(0)
    for norm in [module for module in network.modules() if isinstance(module, BATCH_NORMS)]:
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network


def _same_output(network: nn.Module, unprepared: nn.Module, example: Tensor) -> bool:
    if example.is_meta:
        return True
    image = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example.device)
    with torch.no_grad():
        output, expected = (
            network(image.clone()),
            unprepared(image),
        )  # networks may change their input in place
    return bool((output - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _replace(network: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module of that name stands; a shared one stands at several places."""
    old = network.get_submodule(name)
    for parent in list(network.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _can_fold(network: nn.Module, layer: str, norm: str) -> bool:
    foldable = isinstance(network.get_submodule(layer), (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    return foldable and network.get_submodule(norm).running_mean is not None


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
    else:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, *statistics, transpose=transposed
        )
    layer.weight, layer.bias = weight.requires_grad_(False), bias.requires_grad_(False)


def _normalises_weight(module: nn.Module) -> bool:
    parametrized = parametrize.is_parametrized(module) and list(module.parametrizations) == [
        "weight"
    ]
    return parametrized or _old_removal(module) is not None


def _old_removal(module: nn.Module) -> Callable[[nn.Module], nn.Module] | None:
    """What removes a normalisation of the kind before parametrizations, if ``module`` has one."""
    if "weight_g" in module._parameters and "weight_v" in module._parameters:
        return remove_weight_norm
    return (
        remove_spectral_norm
        if "weight_orig" in module._parameters and "weight_u" in module._buffers
        else None
    )


def _bake(module: nn.Module) -> None:
    if remove := _old_removal(module):
        remove(module).weight.requires_grad_(False)
        hooks = (
            module._load_state_dict_pre_hooks
        )  # one is left behind, and would want the old weight of a checkpoint
        for key, held in list(hooks.items()):
            if isinstance(getattr(held, "hook", held), SpectralNormLoadStateDictPreHook):
                del hooks[key]
        return
    # remove_parametrizations would take the weight from copies of the module too, which share its class.
    weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.weight = weight
