"""A network with quantized layers and the image's bit mapping around it."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError, CheckpointError, OptionError
from adabm_basicsr.quantization.bit_mapping import (
    ImageBitMapping,
    frames_of,
    image_complexity,
)
from adabm_basicsr.quantization.checkpoint import (
    BASE_PREFIX,
    BLUEPRINT_KEY,
    QUANTIZED_KEY,
    check_same,
    is_quantized,
    named_as,
    unwrap,
)
from adabm_basicsr.quantization.checks import CLIP_AXES, check_clips, check_images
from adabm_basicsr.quantization.config import (
    FLOAT_BITS,
    MAX_BITS,
    MIN_BITS,
    QuantizationConfig,
)
from adabm_basicsr.quantization.engines import DEFAULT_ENGINE
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.patterns import match_all
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, mean_bits
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.blueprint import (
    Blueprint,
    find_blueprint,
    read_blueprint,
)
from adabm_basicsr.quantization.structure.clips import Least, find_least, naming_least
from adabm_basicsr.quantization.structure.frames import (
    CLIP,
    FramesOfCalls,
    find_frames,
    unwatched,
)
from adabm_basicsr.quantization.structure.outputs import take_first_image
from adabm_basicsr.quantization.structure.preparation import (
    copy_of,
    fill_lazy_layers,
    uncompiled,
)
from adabm_basicsr.quantization.structure.roles import override_roles
from adabm_basicsr.quantization.structure.sizes import (
    different_frames,
    run_padded,
    smallest_clip,
)
from adabm_basicsr.quantization.structure.surgery import (
    KEPT_IN_FLOAT,
    LayerPlan,
    Plan,
    plan_layers,
    replace_layers,
    restore_layers,
)
from adabm_basicsr.quantization.user_code import users_code

if TYPE_CHECKING:
    from adabm_basicsr.quantization.calibration.quality import KeptInFloat

ENGINE_KEY = "engine"  # in quantized checkpoints for other engines than the default
# In those of networks that run the most complex images in full precision.
FULL_PRECISION_KEY = "full_precision_above"
OTHER_OPTIONS = "the checkpoint was quantized with other options"
QUANTIZERS = (ActivationQuantizer, WeightQuantizer)


class Stage(IntEnum):
    """How far a quantized network has come."""

    FRESH = 0
    CALIBRATED = 1
    CLIPPED = 2


class _Lock:
    """Lets one thread at a time into a network, whose layers hold what belongs to a single pass.

    The thread that is in it may enter again. Copies have their own.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return type(self), ()


class Details(NamedTuple):
    """Output of a forward pass with what fine-tuning needs of it.

    Attributes:
        output: Super-resolved images, ``(B, C, sH, sW)``, all of them quantized: also those that
            run in full precision where no details are asked for.
        bits: Mean bits of each sample over quantized layers not fixed at 8 bits, ``(B,)``.
        features: Outputs of the body's blocks, in execution order.
    """

    output: Tensor
    bits: Tensor
    features: list[Tensor]


class QuantizedNetwork(nn.Module):
    """Wraps a full-precision network and quantizes it in place.

    The base network stays in evaluation mode whatever `train` is called with: batch normalisation,
    dropout and re-parameterised branches must compute what will be deployed. Its parameters are
    frozen.

    Args:
        network: Maps ``(B, C, H, W)`` in 0..1 to an image, or ``(B, T, C, H, W)`` to a clip or to
            one image. Changed in place; its keys get the prefix ``network.``.
        config: What to quantize and how.
        example: An input of the network, ``(1, C, H, W)`` or ``(1, T, C, H, W)``, on its device; it
            is run to find head, body and tail.
        blueprint: What a run of the network showed, which isn't run then; ``example`` only gives
            the channels and the device.

    Attributes:
        blueprint: What the run of the network showed; the next six are parts of it.
        structure: Roles and blocks that were found.
        in_channels: Channels of the images that the network takes.
        clips: Which clips the network takes; None of one that takes images.
        size_multiple: Images are mirrored up to multiples of this many pixels, and the output is
            cropped.
        preparation: How the network was rewritten before its layers were replaced.
        plan: Quantized and skipped layers.
        image_mapping: `ImageBitMapping`, or None for recipes of fixed bits.
        layer_bits: Bits of weights and activations, whether adaptive and whether fixed, of each
            quantized layer: uint8 ``(layers, 4)``.
        reached: Its `Stage`. A plain number: who looks it up on a GPU doesn't wait for one.
        stage: The same as checkpoints keep it, a uint8 scalar.
        lock: Context manager for what other threads must not interrupt: each pass holds it, and
            calibration.
        gradient_problem: Why gradients don't go through the network, once that was tried; empty
            where they do.
        full_precision_above: Complexity above which images run in full precision, a float32 scalar;
            None where all are quantized.
        full_precision_share: Share of the images of the last pass that ran in full precision.
        kept: What layers or images that calibration kept in float cost and bought; None where it
            kept none.
        overwrites: Whether the network changes in place what gradients need, once that was tried.

    Raises:
        AdaBMError: A pattern matches nothing, nothing can be quantized, the network isn't in
            float32, ``in_channels`` are others than those of ``example``, or
            ``full_precision_images`` are asked of a network that takes clips, or its layers are
            quantized already.
    """

    layer_bits: Tensor
    stage: Tensor
    full_precision_above: Tensor | None
    full_precision_share = 0.0
    gradient_problem = ""
    overwrites = False
    kept: KeptInFloat | None = None

    def __init__(
        self,
        network: nn.Module,
        config: QuantizationConfig,
        example: Tensor,
        blueprint: Blueprint | None = None,
    ) -> None:
        super().__init__()
        if example.dtype is not torch.float32:
            raise AdaBMError(
                f"the network works on {example.dtype}; quantize it in torch.float32 "
                "(network.float())"
            )
        if any(isinstance(module, QuantizedLayer) for module in network.modules()):
            raise AdaBMError(
                f"{type(network).__name__} is quantized already: quantize the network that it was "
                "made of"
            )
        channels = example.shape[-3]
        if config.in_channels not in (None, channels):
            raise OptionError(f"in_channels: {config.in_channels}, but the example has {channels}")
        if config.full_precision_images and example.dim() == CLIP_AXES:
            raise OptionError(
                f"full_precision_images: {config.full_precision_images:g}, but the network takes "
                "clips, whose frames run side by side; valid: 0"
            )
        self.config = config
        self.lock = _Lock()
        self._example = (example,)  # in a tuple, so as to be no part of the state
        network = uncompiled(network).eval()
        take_first_image(network)
        fill_lazy_layers(network, example)
        network.requires_grad_(False)
        if blueprint is None:
            blueprint = find_blueprint(network, config, example)
        elif blueprint.in_channels != channels:
            raise CheckpointError(
                f"the network takes {channels} channels, and its blueprint is of one that "
                f"takes {blueprint.in_channels}"
            )
        self._build(network, blueprint)
        self.image_mapping = ImageBitMapping() if config.arithmetic.adaptive else None
        self.reached = int(Stage.FRESH)
        self.register_buffer("stage", torch.tensor(Stage.FRESH, dtype=torch.uint8))
        self.register_buffer(FULL_PRECISION_KEY, None)
        if config.engine != DEFAULT_ENGINE:
            # Its name, so that no other arithmetic is read from it.
            letters = list(config.engine.encode())
            self.register_buffer(ENGINE_KEY, torch.tensor(letters, dtype=torch.uint8))
        self.to(example.device)

    def _build(self, network: nn.Module, blueprint: Blueprint) -> None:
        """Prepare ``network`` and replace its layers, in place."""
        preparation = blueprint.preparation
        preparation.check(network)
        # Plain checkpoints are in the layout of the network as it was. In a tuple, so as not to be
        # a submodule.
        unprepared = (copy_of(network),) if preparation else ()
        network = preparation.apply(network)
        blueprint.check(network)

        self._unprepared = unprepared
        self.blueprint = blueprint
        self.in_channels = blueprint.in_channels
        self.clips = blueprint.clips
        self.size_multiple = self.config.size_multiple or blueprint.size_multiple
        self.preparation = preparation
        self.structure = blueprint.structure
        self.plan = blueprint.plan
        self.network = network
        replace_layers(network, self.plan, self.structure, blueprint.joins, self.config)
        network.eval()  # the new quantizers too
        bits = [_row(plan) for plan in self.plan.layers.values()]
        # In the checkpoint, so that one saved at other bits isn't read as something that it is not.
        self.register_buffer("layer_bits", torch.tensor(bits, dtype=torch.uint8))
        for block in self._blocks():
            block.kept_outputs = None
            block.register_forward_hook(_keep_output)
        self._found_frames: dict[int, FramesOfCalls] = {}
        if self.clips is not None:
            for layer in self.layers().values():
                if isinstance(layer, QuantizedLayer):
                    layer.register_forward_pre_hook(_take_factor)

    def reach(self, stage: Stage) -> None:
        """Note that the network has come to a stage."""
        self.reached = int(stage)
        self.stage.fill_(stage)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        # Here rather than in load_state_dict, which a module around this one doesn't call.
        self.full_precision_above = None
        if prefix + FULL_PRECISION_KEY in state_dict:
            self.keep_images_in_float(math.inf)  # room for what is loaded
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.stage.is_meta:
            self.reached = int(self.stage)

    def read_back(self) -> None:
        """Take up stage and bits that were written to the state otherwise than by loading it."""
        self.reached = int(self.stage)
        for quantizer in self.weight_quantizers().values():
            quantizer.read_back()

    def adopt(self, blueprint: Blueprint) -> None:
        """Rebuild the network by what another run of it showed, such as that of a checkpoint.

        Quantizers are fresh afterwards.

        Raises:
            AdaBMError: The blueprint is of another network or of other options; this one is left
                as it was.
        """
        if blueprint == self.blueprint:
            return
        self._check_plan(blueprint)
        device = self.stage.device
        self._build(self._as_it_was(), blueprint)
        self.reach(Stage.FRESH)
        self.to(device)

    def keep_in_float(self, names: Iterable[str]) -> None:
        """Leave further layers in full precision, because fewer bits don't reach the target.

        Quantizers are fresh afterwards. Checkpoints say which layers they are.

        Args:
            names: Quantized layers and products, at least one of which is left.
        """
        kept = set(names)
        plan = Plan({}, {})
        for name, layer in self.plan.layers.items():
            if name not in kept:
                plan.layers[name] = layer
        for name in self.structure.roles:
            if name in kept:
                plan.skipped[name] = KEPT_IN_FLOAT
        plan.skipped.update(self.plan.skipped)
        self.adopt(replace(self.blueprint, plan=plan))

    def quantize_kept(self) -> None:
        """Quantize again all images, and what `keep_in_float` left in full precision.

        Quantizers are fresh then, if there were such layers.
        """
        if self.kept_in_float:
            plan = plan_layers(self.structure, self.config)
            self.adopt(replace(self.blueprint, plan=plan))
        self.full_precision_above = None
        self.kept = None

    def keep_images_in_float(self, above: float) -> None:
        """Run the most complex images in full precision from now on.

        Args:
            above: The complexity above which images do; see `image_complexity`.
        """
        self.full_precision_above = torch.tensor(above, device=self.stage.device)

    def in_full_precision(self, image: Tensor) -> Tensor:
        """Which images are so complex that they run in full precision.

        Args:
            image: ``(B, C, H, W)`` in 0..1.

        Returns:
            ``(B,)``, true or false.
        """
        if self.full_precision_above is None:
            return torch.zeros(len(image), dtype=torch.bool, device=image.device)
        return image_complexity(image) > self.full_precision_above

    @property
    def kept_in_float(self) -> list[str]:
        """Layers and products that are left in full precision to reach the target."""
        reasons = self.plan.skipped
        return [name for name, reason in reasons.items() if reason == KEPT_IN_FLOAT]

    def _as_it_was(self) -> nn.Module:
        """A copy of the network before its preparation and without quantizers."""
        if self._unprepared:
            return copy_of(self._unprepared[0])
        return self.float_network()

    def float_network(self) -> nn.Module:
        """A copy of the prepared network without quantizers: what it is in full precision."""
        network = copy_of(self.network)
        for name in self.structure.blocks:
            _forget_outputs(network.get_submodule(name))
        for module in network.modules():
            if isinstance(module, QuantizedLayer):
                _remove_hook(module._forward_pre_hooks, _take_factor)
        restore_layers(network)
        return network

    def _check_plan(self, blueprint: Blueprint) -> None:
        """Reject a blueprint that was made from other options."""
        if blueprint.in_channels != self.in_channels:
            raise CheckpointError(
                f"the checkpoint is of a network that takes {blueprint.in_channels} channels, and "
                f"this one takes {self.in_channels}"
            )
        structure = copy.deepcopy(blueprint.structure)
        override_roles(structure.roles, self.config)
        if self.config.blocks:
            match_all("blocks", self.config.blocks, structure.blocks, "block of the checkpoint")
        own = plan_layers(structure, self.config).layers
        if self.config.target:
            for name, reason in blueprint.plan.skipped.items():
                if reason == KEPT_IN_FLOAT:
                    own.pop(name, None)
        saved = blueprint.plan.layers
        if len(saved) != len(own):
            raise _other_count(len(saved), len(own))
        for name, plan in saved.items():
            if name not in own:
                raise CheckpointError(
                    f"{OTHER_OPTIONS}: it quantizes {name}, which the options leave in full "
                    "precision"
                )
            _check_bits(name, _row(plan), _row(own[name]))

    def train(self, mode: bool = True) -> QuantizedNetwork:
        """Set the mode of the wrapper alone; the base network stays in evaluation mode."""
        self.training = mode
        return self

    # States

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a quantized checkpoint, or a plain one of the base network; its keys say which.

        Raises:
            AdaBMError: Keys, shapes or bits differ and ``strict`` is on.
        """
        state = unwrap(state_dict)
        if is_quantized(state):
            if strict:
                self._check_state(state)
        else:
            state = self._with_base(state, strict)
        return super().load_state_dict(state, strict, assign)

    def load_saved(self, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        """Load a state dict, and take on the structure that goes with it.

        That of a quantized one stands in its description; files that were written earlier lack it.
        With the weights of a plain one the network may take other paths than without: it is run
        again.

        Args:
            state: See `load_state_dict`.
            description: What stands beside it, see `description`.

        Raises:
            AdaBMError: Keys, shapes, bits or options differ, or the description is damaged.
        """
        if is_quantized(state):
            self._check_engine(state)
            described = description.get(BLUEPRINT_KEY)
            if described is not None:
                self.adopt(read_blueprint(described))
            self.load_state_dict(state)
            return
        self.load_state_dict(state)
        network = self._as_it_was()
        network.load_state_dict(named_as(network.state_dict(), unwrap(state)))
        example = self._example[0].to(self.stage.device)
        blueprint = find_blueprint(network, self.config, example)
        if blueprint != self.blueprint:
            self._build(network, blueprint)
            self.to(example.device)

    def _check_engine(self, state: Mapping[str, Tensor]) -> None:
        engine = engine_of(state)
        if engine != self.config.engine:
            raise CheckpointError(
                f"the checkpoint was quantized for engine: {engine}, the options say engine: "
                f"{self.config.engine}"
            )

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        """Reject a quantized state of another engine, or of other layers, keys, shapes or bits."""
        self._check_engine(state)
        saved = state[QUANTIZED_KEY]
        count = len(saved) if saved.dim() else 0
        if count != len(self.layer_bits):
            raise _other_count(count, len(self.layer_bits))
        expected = self.state_dict()
        if FULL_PRECISION_KEY in state:
            expected[FULL_PRECISION_KEY] = torch.tensor(math.inf)
        else:
            expected.pop(FULL_PRECISION_KEY, None)
        check_same(expected, state, f"quantized {type(self.network).__name__}")
        self._check_full_precision(state)
        self.check_values(state)

    def _check_full_precision(self, state: Mapping[str, Tensor]) -> None:
        """Reject a quantized state whose images in full precision aren't those of the options."""
        asked = self.config.full_precision_images
        has_images = FULL_PRECISION_KEY in state
        if asked and not has_images and int(state["stage"]) != Stage.FRESH:
            raise CheckpointError(
                f"{OTHER_OPTIONS}: it quantizes all images, the options say "
                f"full_precision_images: {asked:g}"
            )
        if has_images and not asked and not self.config.target:
            raise CheckpointError(
                f"{OTHER_OPTIONS}: it runs complex images in full precision, the options say "
                "full_precision_images: 0"
            )

    def check_values(self, state: Mapping[str, Tensor]) -> None:
        """Reject a quantized state whose bits, stage or scales can't be those of this network.

        Args:
            state: Of the keys and shapes of this network's own.

        Raises:
            CheckpointError: They can't.
        """
        rows = state[QUANTIZED_KEY].tolist()
        for (name, plan), row in zip(self.plan.layers.items(), rows, strict=True):
            _check_bits(name, row, _row(plan))
        stage = int(state["stage"])
        if stage not in set(Stage):
            raise CheckpointError(f"the checkpoint is damaged: it is of a stage {stage}")
        if FULL_PRECISION_KEY in state and not bool(state[FULL_PRECISION_KEY] >= 0):
            raise CheckpointError(
                f"the checkpoint is damaged: {FULL_PRECISION_KEY} is no complexity"
            )
        for key, value in state.items():
            if key.endswith("_quantizer.channel_scale") and not bool((value > 0).all()):
                raise CheckpointError(f"the checkpoint is damaged: {key} isn't above 0")
        for name, quantizer in self.weight_quantizers().items():
            if quantizer.allocated is None:
                continue
            bits = int(state[f"{BASE_PREFIX}{name}.weight_quantizer.allocated"])
            if not MIN_BITS <= bits <= MAX_BITS:
                raise CheckpointError(
                    f"the checkpoint is damaged: {name} has weights of {bits} bits"
                )

    def _with_base(self, base: dict[str, Tensor], strict: bool) -> dict[str, Tensor]:
        """The full state with the weights of a plain one; quantizers are left uncalibrated."""
        expected = self.base_state()
        base = named_as(expected, base)
        if strict:
            check_same(expected, base, type(self.network).__name__)
        state = self.state_dict()
        state.pop(FULL_PRECISION_KEY, None)
        state["stage"] = torch.zeros_like(state["stage"])
        for key, value in self.prepared_state(base, strict).items():
            state[BASE_PREFIX + key] = value
        return state

    def prepared_state(self, state: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
        """What a state dict of the base network becomes once the network is prepared."""
        if not self._unprepared:
            return dict(state)
        network = copy.deepcopy(self._unprepared[0])
        network.load_state_dict(state, strict)
        return self.preparation.apply(network).state_dict()

    def base_state(self) -> dict[str, Tensor]:
        """State dict of the base network in the layout of its plain checkpoints."""
        if self._unprepared:
            return self._unprepared[0].state_dict()
        # A shared layer has a key at each of its places.
        modules = self.network.named_modules(remove_duplicate=False)
        prefixes = tuple(f"{name}." for name, module in modules if isinstance(module, QUANTIZERS))
        state = self.network.state_dict()
        return {key: value for key, value in state.items() if not key.startswith(prefixes)}

    # Parts

    @property
    def description(self) -> dict[str, Any]:
        """What stands beside the weights in checkpoints, in JSON's types."""
        return {BLUEPRINT_KEY: self.blueprint.describe()}

    def base_parameters(self) -> list[nn.Parameter]:
        """Parameters of the prepared base network, those of the quantizers left out."""
        of_quantizers: set[nn.Parameter] = set()
        for module in self.network.modules():
            if isinstance(module, QUANTIZERS):
                of_quantizers.update(module.parameters())
        return [p for p in self.network.parameters() if p not in of_quantizers]

    def full_precision_bytes(self) -> int:
        """Bytes that the parameters of the prepared base network take in float32."""
        return sum(p.numel() * p.element_size() for p in self.base_parameters())

    def layers(self) -> dict[str, QuantizedLayer | QuantizedProduct]:
        """Quantized layers and products by name, in execution order."""
        found: dict[str, Any] = {}
        for name in self.plan.layers:
            found[name] = self.network.get_submodule(name)
        return found

    def weight_quantizers(self) -> dict[str, WeightQuantizer]:
        """Weight quantizers by the name of their layer, in execution order."""
        found = {}
        for name, layer in self.layers().items():
            quantizer = getattr(layer, "weight_quantizer", None)
            if isinstance(quantizer, WeightQuantizer):
                found[name] = quantizer
        return found

    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Activation quantizers by the name of their layer, in execution order; each once.

        Those of products have the product's name with ``.left`` and ``.right``. Those of values
        that no layer takes have the name of the place at which such a value is quantized.
        """
        places: dict[str, nn.Module | None] = {}
        for name, layer in self.layers().items():
            places.update(layer.inputs(name))
        for value in self.blueprint.joins.values:
            for place in value:
                owner, _, key = place.rpartition(".")
                places[place] = getattr(self.network.get_submodule(owner), key, None)
        found = {}
        seen = set()
        for name, quantizer in places.items():
            if isinstance(quantizer, ActivationQuantizer) and quantizer not in seen:
                found[name] = quantizer
                seen.add(quantizer)
        return found

    def _blocks(self) -> list[Any]:
        """The body's blocks; outputs of the current pass are in their ``kept_outputs``."""
        return [self.network.get_submodule(name) for name in self.structure.blocks]

    # Running

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within this context the network computes what it did before quantization: the teacher.

        Other threads wait.
        """
        quantizers = [module for module in self.network.modules() if isinstance(module, QUANTIZERS)]
        with self.lock:
            before = [quantizer.enabled for quantizer in quantizers]
            for quantizer in quantizers:
                quantizer.enabled = False
            try:
                yield
            finally:
                for quantizer, was_enabled in zip(quantizers, before, strict=True):
                    quantizer.enabled = was_enabled

    def forward(self, image: Tensor, details: bool = False) -> Tensor | Details:
        """Super-resolve ``image``, each sample at its own bits or in full precision.

        Args:
            image: ``(B, C, H, W)`` in 0..1, of any height and width; of a network that takes clips
                ``(B, T, C, H, W)``.
            details: Whether to return `Details` instead of the output alone. It is for fine-tuning,
                which learns from quantized images: every image is quantized then.

        Returns:
            ``(B, C, sH, sW)``, a frame for each of the clip's, ``(B, T, C, sH, sW)``, or `Details`.

        Raises:
            AdaBMError: The image is of another kind or shape, the network's own code fails on it,
                or the network hasn't been calibrated and no quantized checkpoint was loaded.
        """
        self.check_input(image)
        with self.lock:
            self.full_precision_share = 0.0
            with naming_least(type(self.network).__name__, self._try, image):
                if self.full_precision_above is None or details:
                    return self._forward(image, details)
                return self._forward_by_complexity(image)

    def find_least(self, clip: Tensor) -> Least | None:
        """What a clip of a network that takes clips has too little of; None if it has enough.

        Args:
            clip: ``(B, T, C, H, W)``; what is in it doesn't matter.
        """
        return find_least(self._try, clip)

    def _try(self, image: Tensor) -> Tensor:
        """Output in full precision, of which nothing is left and which nothing watches."""
        with self.full_precision(), unwatched(self.network):
            return run_padded(self.network, image, self.size_multiple)

    def _forward_by_complexity(self, image: Tensor) -> Tensor:
        """Output for a batch whose most complex images run in full precision."""
        is_full = self.in_full_precision(image)
        parts = []
        if is_full.any():
            with self.full_precision():
                parts.append((is_full, self._forward(image[is_full], False)))
        # Last, so that the bits that are left of the pass are theirs.
        if not is_full.all():
            parts.append((~is_full, self._forward(image[~is_full], False)))
        self.full_precision_share = float(is_full.float().mean())
        output = image.new_empty((len(image), *parts[0][1].shape[1:]))
        for chosen, of_chosen in parts:
            output[chosen] = of_chosen
        return output

    def check_input(self, image: Tensor) -> None:
        """Reject what the network can't take: images where it takes clips, say.

        Raises:
            AdaBMError: It is of another kind or shape.
        """
        if self.clips is None:
            check_images(image, self.in_channels)
        else:
            check_clips(image, self.in_channels, self.clips.window)

    def _forward(self, image: Tensor, details: bool) -> Any:
        # Found anew in each pass: a replica (DataParallel) has modules of its own.
        quantizers = [m for m in self.network.modules() if isinstance(m, ActivationQuantizer)]
        blocks = self._blocks()
        self.check_calibrated(quantizers)
        self._hand_out_factors(image, quantizers)
        for block in blocks:
            block.kept_outputs = [] if details else None
        try:
            output = self._run(image, details)
            for quantizer in quantizers:
                quantizer.add_up_calls(len(image))
            if not details:
                return output
            bits = mean_bits(self.network, image.device).expand(len(image))
            features = []
            for block in blocks:
                features += block.kept_outputs
            return Details(output, bits, features)
        finally:
            for block in blocks:
                block.kept_outputs = None
            self._take_factors_back(quantizers)

    def _run(self, image: Tensor, details: bool) -> Tensor:
        """Output of the network, in the type of the image."""
        kind = type(self.network).__name__
        what = "an image" if self.clips is None else "a clip"
        sentence = f"{kind} cannot be run on {what} of shape {tuple(image.shape)}"
        way_out = ""
        if torch.is_grad_enabled() and not details:
            # Fine-tuning, which wants details, needs gradients.
            way_out = "; it may run under torch.no_grad()"
        with users_code(self.network, sentence, way_out):
            # A copy, as networks may change their input in place: the teacher and the next epoch
            # need it as it was.
            output = run_padded(self.network, image.clone(), self.size_multiple)
        # Losses would overflow in float16.
        return output.to(image.dtype)

    def check_calibrated(self, quantizers: Iterable[ActivationQuantizer] | None = None) -> None:
        """Raise `AdaBMError` if a quantizer is switched on without a range.

        Args:
            quantizers: Those that must have ranges; all by default.
        """
        if self.reached != Stage.FRESH:
            return
        if quantizers is None:
            quantizers = self.activation_quantizers().values()
        if any(quantizer.enabled for quantizer in quantizers):
            raise AdaBMError(
                "the quantized network has no ranges yet: calibrate it (train), or load a "
                "quantized checkpoint (path: pretrain_network_g)"
            )

    @torch.no_grad()
    def bits_for(self, image: Tensor) -> Tensor:
        """Mean bits that each image would be quantized at, without running the network.

        Args:
            image: ``(B, C, H, W)`` in 0..1.

        Returns:
            ``(B,)``: what `Details` calls ``bits``, as long as every layer runs; 32 for images in
            full precision.
        """
        with self.lock:
            image_factor = self._image_factor(image)
            factors = self._factors_of_calls(image, image_factor)
            for name, layer in self.layers().items():
                for quantizer in layer.inputs(name).values():
                    if isinstance(quantizer, ActivationQuantizer):
                        _count_bits(quantizer, factors.get(name, [image_factor]), len(image))
            bits = mean_bits(self.network, image.device).expand(len(image))
        return bits.masked_fill(self.in_full_precision(image), FLOAT_BITS)

    @torch.no_grad()
    def bits_of_frames(self, clips: Tensor) -> Tensor:
        """Mean bits of each frame of clips, without running the network.

        What belongs to the clip counts in equal parts for all of its frames. Where layers run as
        often for each frame, the mean over them is what `bits_for` gives.

        Args:
            clips: ``(B, T, C, H, W)`` in 0..1.

        Returns:
            ``(B, T)``.
        """
        length = clips.shape[1]
        if self.clips is None or self.image_mapping is None:
            return self.bits_for(clips).unsqueeze(1).expand(-1, length)
        with self.lock:
            factors = self._factors_of_frames(clips, self.image_mapping(clips))
            frames = self._frames_of_calls(length)
            total = torch.zeros_like(factors)
            calls = factors.new_zeros(length + 1)
            for name, layer in self.layers().items():
                count = torch.zeros(length + 1)
                for frames_of_call in frames.get(name, [[CLIP]]):
                    for frame in frames_of_call:
                        count[frame] += 1
                count = count.to(factors)
                for quantizer in layer.inputs(name).values():
                    if isinstance(quantizer, ActivationQuantizer) and not quantizer.fixed:
                        total += count * _bits_at(quantizer, factors)
                        calls += count
        if not calls.any():
            return self.bits_for(clips).unsqueeze(1).expand(-1, length)
        of_clip = total[:, CLIP:] / length
        return (total[:, :CLIP] + of_clip) / (calls[:CLIP] + calls[CLIP] / length)

    def _image_factor(self, image: Tensor) -> Tensor | None:
        """Factor of each image, ``(B,)``; None for recipes of fixed bits."""
        if self.image_mapping is None:
            return None
        factor: Tensor = self.image_mapping(image)
        return factor

    def _hand_out_factors(self, image: Tensor, quantizers: Iterable[ActivationQuantizer]) -> None:
        """Let quantizers find the factors of the pass that begins, those of each call of clips."""
        image_factor = self._image_factor(image)
        for quantizer in quantizers:
            quantizer.image_factor = image_factor
            quantizer.last_bits = None
        if self.clips is None:
            return
        for quantizer in quantizers:
            quantizer.bits_of_calls = []
        factors = self._factors_of_calls(image, image_factor)
        for name, layer in self.layers().items():
            if isinstance(layer, QuantizedLayer):
                layer.factors_of_calls = iter(factors.get(name, []))

    def _take_factors_back(self, quantizers: Iterable[ActivationQuantizer]) -> None:
        """Leave nothing of a pass but the bits that were used."""
        for quantizer in quantizers:
            quantizer.image_factor = None
            quantizer.bits_of_calls = None
            if quantizer.last_bits is not None:
                quantizer.last_bits = quantizer.last_bits.detach()
        if self.clips is not None:
            for layer in self.layers().values():
                layer.__dict__.pop("factors_of_calls", None)

    def _factors_of_calls(
        self, image: Tensor, image_factor: Tensor | None
    ) -> dict[str, list[Tensor]]:
        """Factor of each row that each layer sees, ``(B * k,)`` for each of its calls.

        Of a frame where the row belongs to one, else of the clip; see `structure.frames`.

        Args:
            image: What the network runs on.
            image_factor: Factor of each clip, ``(B,)``.

        Returns:
            By the name of the layer. Nothing for networks that take images, or whose bits are
            fixed.
        """
        if self.clips is None or self.image_mapping is None or image_factor is None:
            return {}
        table = self._factors_of_frames(image, image_factor)
        factors = {}
        for name, calls in self._frames_of_calls(image.shape[1]).items():
            factors[name] = [table[:, frames].flatten() for frames in calls]
        return factors

    def _factors_of_frames(self, clips: Tensor, clip_factor: Tensor) -> Tensor:
        """Factor of each frame, and in the last column, `CLIP`, of each clip: ``(B, T + 1)``."""
        assert self.image_mapping is not None, "networks of fixed bits have no factors"
        of_frames: Tensor = self.image_mapping(frames_of(clips))
        return torch.cat([of_frames.view(clips.shape[:2]), clip_factor.unsqueeze(1)], dim=1)

    def _frames_of_calls(self, length: int) -> FramesOfCalls:
        """Which frame each call of a layer belongs to in clips of that length; found once."""
        if length not in self._found_frames:
            example = self._example[0].to(self.stage.device)
            longer = different_frames(example, (1, length, *example.shape[2:]))
            layers = {}
            for name, layer in self.layers().items():
                if isinstance(layer, QuantizedLayer):
                    layers[name] = layer
            # In the middle of a pass that others watch.
            with self.full_precision(), unwatched(self.network):
                clip = smallest_clip(self.network, longer, self.size_multiple)
                found = find_frames(self.network, layers, clip)
            self._found_frames[length] = found
        return self._found_frames[length]

    def _replicate_for_data_parallel(self) -> QuantizedNetwork:
        replica: QuantizedNetwork = super()._replicate_for_data_parallel()
        replica.lock = _Lock()  # replicas run side by side
        return replica


def engine_of(state: Mapping[str, Tensor]) -> str:
    """The engine that the network of a quantized state was made for."""
    letters = state.get(ENGINE_KEY)
    if letters is None:
        return DEFAULT_ENGINE
    return bytes(letters.tolist()).decode(errors="replace")


def _row(plan: LayerPlan) -> list[int]:
    """What ``layer_bits`` holds of a layer."""
    return [plan.w_bits, plan.a_bits, int(plan.adaptive), int(plan.fixed)]


def _other_count(saved: int, own: int) -> CheckpointError:
    return CheckpointError(
        f"{OTHER_OPTIONS}: it has {saved} quantized layers, the options give {own}; the same "
        "fully_quantized, exclude, head, tail, body and blocks are needed"
    )


def _check_bits(name: str, have: list[int], want: list[int]) -> None:
    """Compare a layer's bits in a checkpoint with those of the options, see `_row`."""
    if have == want:
        return
    have_adaptive = ", adaptive" if have[2] else ""
    want_adaptive = ", adaptive" if want[2] else ""
    raise CheckpointError(
        f"{OTHER_OPTIONS}: {name} has w_bits {have[0]}, a_bits {have[1]}{have_adaptive}; the "
        f"options say w_bits {want[0]}, a_bits {want[1]}{want_adaptive}"
    )


def _count_bits(
    quantizer: ActivationQuantizer, factors: Iterable[Tensor | None], samples: int
) -> None:
    """Let a quantizer's bits be those of its calls without running it; see `_factors_of_calls`."""
    quantizer.bits_of_calls = []
    for factor in factors:
        quantizer.bits_of_calls.append(_bits_at(quantizer, factor))
    quantizer.add_up_calls(samples)
    quantizer.bits_of_calls = None


def _bits_at(quantizer: ActivationQuantizer, factor: Tensor | None) -> Tensor:
    """Bits that a quantizer would use at these factors of images."""
    quantizer.image_factor = factor
    bits = quantizer.bits_used()
    quantizer.image_factor = None
    return bits


def _take_factor(layer: QuantizedLayer, args: tuple) -> None:
    """Forward pre-hook of the layers of a network that takes clips: the factor of this call."""
    factor = next(layer.factors_of_calls, None)
    rows = len(args[0]) if args else 0
    # A branch that wasn't taken when the network was looked at keeps the factor of the clip.
    if factor is not None and rows and rows % len(factor) == 0:
        layer.input_quantizer.image_factor = factor


def _forget_outputs(block: Any) -> None:
    """Remove what keeps the outputs of one of the body's blocks."""
    _remove_hook(block._forward_hooks, _keep_output)
    del block.kept_outputs


def _remove_hook(hooks: dict[int, Any], hook: Any) -> None:
    """Remove a hook from those of a module."""
    for key, held in list(hooks.items()):
        if held is hook:
            del hooks[key]


def _keep_output(block: Any, args: tuple, output: Tensor) -> None:
    """Forward hook of the body's blocks."""
    if block.kept_outputs is not None:
        block.kept_outputs.append(output)
