"""What to quantize and how: the keys of ``network_g`` in a YAML file, the arguments of `quantize` in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase

from adabm_basicsr.errors import AdaBMError, check_keys, check_positive, did_you_mean
from adabm_basicsr.quantization.calibration.observers import OBSERVERS
from adabm_basicsr.quantization.finetuning.losses import PIXEL_LOSSES

FLOAT_BITS = 32
FIXED_BITS = 8  # head and tail, where they are quantized at all


@dataclass(frozen=True)
class Recipe:
    """A named way to quantize; ``ingredients`` in the options replace single fields of it.

    Attributes:
        adaptive: Whether bits follow layer and image.
        observer: How activation ranges are calibrated, a key of `OBSERVERS`.
        clip: Whether bit-aware clipping (BaC) runs at the first quantized forward pass.
        phases: What fine-tuning trains, an epoch each in turn, of `PHASES`.
        integer: Whether integer arithmetic reproduces the quantizers: weights are signed integers with a scale per
            output channel, activations have an integer zero point, batch normalisation is folded.
        scale_free: Whether learning and layer sensitivities are relative to each layer's range.
        learning_rates: Of what is trained, by name; those of ranges, weight corrections and biases are in units of
            their own where the recipe is ``scale_free``.
        lr_decay: Factor on a phase's learning rates after each of its own epochs; None for half a cosine over the run.
        iterations: Length of fine-tuning where ``train: total_iter`` doesn't say it.
        feature_weight: Weight of the feature loss in fine-tuning.
        pixel_loss: Distance of images in fine-tuning, of `PIXEL_LOSSES`.
        reconstruct: Whether input channels get scales and zero points of their own, and layers are reconstructed one by
            one in calibration.
        allocate: Whether bits of layers follow from how much their errors change the image, within the bits asked for
            on average; bits of weights too.
        image_bits: Bits that images of the lowest and of the highest level add to those of the layers.
        image_ranges: Whether each image level has clipping ranges of its own.
        image_percentiles: Shares of the calibration images below the two thresholds of complexity.
        fixed_crops: Whether each epoch of fine-tuning sees the same patches, so that what the teacher makes of them is
            computed once; the dataset's option of that name overrides it.
        bit_range: Smallest and largest bits that a layer may use on an image.
        min_a_bits: Smallest base bits that the recipe takes.
    """

    adaptive: bool
    observer: str
    clip: bool
    phases: tuple[str, ...]
    integer: bool
    scale_free: bool
    learning_rates: Mapping[str, float]
    lr_decay: float | None = 0.9
    iterations: int = 400
    feature_weight: float = 10.0
    pixel_loss: str = "l1"
    reconstruct: bool = False
    allocate: bool = False
    image_bits: tuple[int, int] = (-1, 1)
    image_ranges: bool = False
    image_percentiles: tuple[float, float] = (0.1, 0.9)
    fixed_crops: bool = False
    bit_range: tuple[int, int] = (2, 8)
    min_a_bits: int = 2


PHASES = ("weight_range", "activation_range", "bit_mapping", "distillation")
PATTERN_KEYS = ("head", "tail", "blocks", "body", "exclude", "non_adaptive")
PAPER_RATES = {
    "weight_range": 0.01,
    "activation_range": 0.01,
    "layer_factor": 0.01,
    "image_threshold": 0.1,
}
RELATIVE_RATES = {
    **PAPER_RATES,
    **{"weight_range": 0.001, "activation_range": 0.002, "weight_correction": 0.03, "bias": 0.01},
}
RECIPES = {
    # The paper doesn't clamp its bits: 8 base bits may become 10, and 3 become 1.
    "paper": Recipe(
        adaptive=True,
        observer="minmax",
        clip=True,
        phases=PHASES[:3],
        integer=False,
        scale_free=False,
        learning_rates=PAPER_RATES,
        bit_range=(1, 10),
        min_a_bits=3,
    ),
    "best": Recipe(
        adaptive=True,
        observer="minmax",
        clip=False,
        phases=("distillation",),
        integer=True,
        scale_free=True,
        learning_rates=RELATIVE_RATES,
        lr_decay=None,
        iterations=400,
        feature_weight=0.0,
        pixel_loss="rms",
        reconstruct=True,
        allocate=True,
        # Images that are more complex need wider ranges rather than more bits, which unseen ones could overdraw.
        image_bits=(-1, 0),
        image_ranges=True,
        image_percentiles=(0.03, 0.7),
        fixed_crops=True,
    ),
    "static": Recipe(
        adaptive=False,
        observer="minmax",
        clip=False,
        phases=(),
        integer=True,
        scale_free=True,
        learning_rates=RELATIVE_RATES,
        iterations=0,
    ),
}
RECIPES["fast"] = replace(RECIPES["best"], iterations=20)
# Fields of a recipe that say what a quantized network is; the others say how it is made.
INFERENCE_FIELDS = (
    "adaptive",
    "integer",
    "allocate",
    "reconstruct",
    "image_bits",
    "image_ranges",
    "bit_range",
)
TARGETS = {"self_psnr": 100, "bitops": 1, "size": 1}  # and what their values lie below
CHOICES = {"observer": tuple(OBSERVERS), "phases": PHASES, "pixel_loss": tuple(PIXEL_LOSSES)}


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of a quantized network.

    Patterns are shell-style (``*`` and ``?``); one that names a module covers the layers below it.

    Attributes:
        w_bits: Bits of the weights, 2..8, or 32 for none.
        a_bits: Base bits of the activations, 2..8 (recipe ``paper``: 3..8), or 32 for none.
        recipe: A key of `RECIPES`.
        fully_quantized: Also quantize what follows the body (adaptively) and head and tail (8 bits, fixed).
        attention_products: Also quantize the products of attention (q·k and attention·v), where there are any.
        observer: How activation ranges are calibrated, a key of `OBSERVERS`; by default the recipe's own.
        head: Patterns of the layers before the body, instead of those that are found.
        tail: Patterns of the layers that upsample and make the image, instead of those that are found.
        blocks: Patterns of the modules that make up the body, instead of those that are found; the feature loss
            compares their outputs.
        body: Patterns of further layers that count as body.
        exclude: Patterns of layers that stay in full precision.
        non_adaptive: Patterns of layers that keep to their base bits; they still count in FAB.
        layers: Own bits for layers by pattern: ``{"body.0.*": {"w_bits": 8, "a_bits": 8}}``; the last match counts.
        size_multiple: Image sizes that the network takes are multiples of this; found by trying if it isn't given.
        target: What to reach instead of ``w_bits`` and ``a_bits`` on average, of recipes that allocate bits:
            ``{"self_psnr": 40}`` (dB, on calibration images), ``{"bitops": 0.03}`` or ``{"size": 0.15}`` (shares of
            full precision).
        ingredients: Fields of `Recipe` that replace the recipe's own: ``{"allocate": False}``.

    Raises:
        AdaBMError: A value is out of range or unknown.
    """

    w_bits: int = 4
    a_bits: int = 4
    recipe: str = "best"
    fully_quantized: bool = False
    attention_products: bool = False
    observer: str | None = None
    head: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    non_adaptive: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    size_multiple: int | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    ingredients: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("recipe", self.recipe, RECIPES)
        check_ingredients(self.recipe, self.ingredients)
        self._check_target()
        if self.observer is not None:
            _check_choice("observer", self.observer, OBSERVERS)
        for key in ("fully_quantized", "attention_products"):
            if not isinstance(getattr(self, key), bool):
                raise AdaBMError(f"{key}: {getattr(self, key)!r} is not true or false")
        for key in PATTERN_KEYS:
            patterns = getattr(self, key)
            if not isinstance(patterns, (list, tuple)) or not all(
                isinstance(pattern, str) for pattern in patterns
            ):
                raise AdaBMError(
                    f"{key}: {patterns!r} is not a list of patterns such as ['body.0']"
                )
        if self.size_multiple is not None:
            check_positive("size_multiple", self.size_multiple)
        self._check_bits("w_bits", self.w_bits)
        self._check_bits("a_bits", self.a_bits)
        if not isinstance(self.layers, Mapping):
            raise AdaBMError(f"layers: {self.layers!r} is not a mapping from patterns to bits")
        for pattern, bits in self.layers.items():
            if not isinstance(bits, Mapping):
                raise AdaBMError(
                    f"layers: {pattern}: {bits!r} is not a mapping; give w_bits, a_bits or both"
                )
            check_keys(f"layers: {pattern}", bits, ("w_bits", "a_bits"))
            for key, value in bits.items():
                self._check_bits(f"layers: {pattern}: {key}", value)

    def _check_target(self) -> None:
        if not isinstance(self.target, Mapping) or len(self.target) > 1:
            raise AdaBMError(
                f"target: {self.target!r} is not one of {', '.join(TARGETS)} with its value"
            )
        check_keys("target", self.target, TARGETS)
        for key, value in self.target.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 < value < TARGETS[key]
            ):
                raise AdaBMError(
                    f"target: {key}: {value!r} is out of range; valid: above 0 and below {TARGETS[key]}"
                )
            if not self.preset.allocate:
                names = [name for name, recipe in RECIPES.items() if recipe.allocate]
                raise AdaBMError(
                    f"target: recipe {self.recipe!r} doesn't allocate bits; valid: {', '.join(names)}"
                )

    def _check_bits(self, key: str, bits: int) -> None:
        if isinstance(bits, str):
            raise AdaBMError(f"{key}: {bits!r} is text; give the number without quotes")
        low = self.preset.min_a_bits if key.endswith("a_bits") else 2
        if (
            isinstance(bits, bool)
            or not isinstance(bits, int)
            or not (low <= bits <= 8 or bits == FLOAT_BITS)
        ):
            why = f" with recipe {self.recipe}" if low > 2 else ""
            raise AdaBMError(
                f"{key}: {bits!r} is out of range; valid{why}: {low} to 8, or {FLOAT_BITS} for full precision"
            )

    @property
    def preset(self) -> Recipe:
        """The recipe that ``recipe`` names, with its ``ingredients`` replaced."""
        own = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.ingredients.items()
        }
        return replace(RECIPES[self.recipe], **own)


def describe_config(config: QuantizationConfig) -> dict[str, object]:
    """Options that give ``config`` again, in JSON's types, whatever later versions make of its recipe's name."""
    own = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "ingredients"}
    recipe = {name: getattr(config.preset, name) for name in INFERENCE_FIELDS}
    described = {**own, "ingredients": {**config.ingredients, **recipe}}
    return json.loads(json.dumps(described, default=dict))


_KINDS = {bool: bool, str: str, int: int, tuple: (list, tuple)}


def check_ingredients(recipe: str, ingredients: Mapping[str, object]) -> None:
    """Raise `AdaBMError` unless each of ``ingredients`` is a field of `Recipe` with a value of its kind."""
    if not isinstance(ingredients, Mapping):
        raise AdaBMError(
            f"ingredients: {ingredients!r} is not a mapping from fields of a recipe to values"
        )
    check_keys(
        "ingredients", ingredients, [f.name for f in fields(Recipe) if f.name != "learning_rates"]
    )
    for key, value in ingredients.items():
        name, usual = f"ingredients: {key}", getattr(RECIPES[recipe], key)
        kinds = _KINDS.get(type(usual), (int, float))  # None stands for no number
        if not isinstance(value, kinds) or isinstance(value, bool) is not isinstance(usual, bool):
            raise AdaBMError(f"{name}: {value!r} is not of the kind of {usual!r}, the recipe's own")
        if key in CHOICES:
            for choice in [value] if isinstance(value, str) else value:
                _check_choice(name, choice, CHOICES[key])
        elif isinstance(usual, tuple):
            _check_pair(name, value, usual)


def _check_pair(name: str, value: Sequence[object], usual: tuple[float, float]) -> None:
    kinds = int if isinstance(usual[0], int) else (int, float)
    if len(value) != 2 or not all(isinstance(end, kinds) for end in value) or value[0] > value[1]:
        raise AdaBMError(
            f"{name}: {value!r} is not a pair of numbers in ascending order like {list(usual)}"
        )


def _check_choice(key: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in list(choices):  # which compares, where a mapping would hash
        raise AdaBMError(f"{key}: unknown value {value!r}; {did_you_mean(value, choices)}")


def match(key: str, pattern: str, names: list[str], kind: str = "layer") -> list[str]:
    """The ``names`` that match a shell-style ``pattern`` or lie below a module of that name.

    Raises:
        AdaBMError: Nothing matches; the message names the near misses.
    """
    matched = [
        name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    ]
    if not matched:
        raise AdaBMError(
            f"{key}: pattern {pattern!r} matches no {kind}; {did_you_mean(pattern, names)}"
        )
    return matched


def match_all(
    key: str, patterns: Sequence[str], names: list[str], kind: str = "layer"
) -> list[str]:
    """The ``names`` that any of ``patterns`` matches, in their order; each pattern must match something."""
    matched = {name for pattern in patterns for name in match(key, pattern, names, kind)}
    return [name for name in names if name in matched]
