"""What to quantize and how: ``network_g`` in an option file, arguments of `quantize` in Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from adabm_basicsr.errors import OptionError, check_keys, check_range, did_you_mean
from adabm_basicsr.quantization.engines import DEFAULT_ENGINE, ENGINES, Engine
from adabm_basicsr.quantization.fields import option
from adabm_basicsr.quantization.recipes import (
    ARITHMETIC_INGREDIENTS,
    INGREDIENT_CHOICES,
    INGREDIENT_RANGES,
    INGREDIENTS,
    INTEGER_RECIPES,
    OBSERVERS,
    RECIPES,
    Arithmetic,
    Calibration,
    Finetuning,
    Recipe,
)

FLOAT_BITS = 32
FIXED_BITS = 8  # head and tail, where they are quantized at all
MIN_BITS = 2
MAX_BITS = 8
BITS = (*range(MIN_BITS, MAX_BITS + 1), FLOAT_BITS)
MAX_CHANNELS = 4096  # of an image
MAX_FRAMES = 1024  # of the clip that a network is looked at on
MAX_SIZE_MULTIPLE = 256  # pixels; images are mirrored up to it, however small they are
PATTERN_KEYS = ("head", "tail", "blocks", "body", "exclude", "non_adaptive")
# Targets, and what their values lie below: dB, and shares of full precision.
TARGETS = {"self_psnr": 100, "psnr_drop": 10, "bitops": 1, "size": 1}


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of a quantized network; each field's metadata says in a sentence what it does.

    Patterns are shell-style (``*`` and ``?``); one that names a module covers the layers below it.

    Raises:
        OptionError: A value is out of range or unknown.
    """

    w_bits: int = option(
        "Bits of the weights; 32 leaves them in full precision.",
        4,
        choices=BITS,
        valid="2 to 8, or 32",
    )
    a_bits: int = option(
        "Bits of the activations on average; 32 leaves them in full precision.",
        4,
        choices=BITS,
        valid="2 to 8 (recipe paper: 3 to 8), or 32",
    )
    recipe: str = option(
        "best: accurate, for any network; fast, thorough: the same with fewer or more iterations; "
        "paper: as published; static: fixed bits, calibrated ranges, no fine-tuning.",
        "best",
        choices=tuple(RECIPES),
    )
    engine: str = option(
        "Program that the network will run in as integers, which decides on their arithmetic; see "
        "docs/engines.md.",
        DEFAULT_ENGINE,
        choices=tuple(ENGINES),
    )
    fully_quantized: bool = option(
        "Whether what follows the body is quantized too, and head and tail at 8 bits.",
        False,
    )
    attention_products: bool = option(
        "Whether the products of attention (q·k and attention·v) are quantized, where there are "
        "any.",
        False,
    )
    observer: str | None = option(
        "How activation ranges are calibrated; the recipe's own by default.",
        None,
        choices=OBSERVERS,
    )
    head: Sequence[str] = option(
        "Patterns of the layers before the body, instead of those that are found.", ()
    )
    tail: Sequence[str] = option(
        "Patterns of the layers that upsample and make the image, instead of those that are found.",
        (),
    )
    blocks: Sequence[str] = option(
        "Patterns of the modules that make up the body, instead of those that are found; the "
        "feature loss compares their outputs.",
        (),
    )
    body: Sequence[str] = option("Patterns of further layers that count as body.", ())
    exclude: Sequence[str] = option("Patterns of layers that stay in full precision.", ())
    non_adaptive: Sequence[str] = option(
        "Patterns of layers that keep to their base bits; they still count in FAB.", ()
    )
    layers: Mapping[str, Mapping[str, int]] = option(
        "Own bits for layers by pattern, {'body.0.*': {w_bits: 8, a_bits: 8}}; the last match "
        "counts.",
        {},
    )
    in_channels: int | None = option(
        "Channels of the images that the network takes; found by trying by default.",
        None,
        minimum=1,
        maximum=MAX_CHANNELS,
    )
    size_multiple: int | None = option(
        "Image sizes that the network takes are multiples of this; found by trying by default.",
        None,
        minimum=1,
        maximum=MAX_SIZE_MULTIPLE,
    )
    target: Mapping[str, float] = option(
        "What to reach instead of bits, of recipes that share bits out: {self_psnr: 40} in dB on "
        "images that weren't fitted, or {psnr_drop: 0.05} in dB on the validation set, with layers "
        "or images in float where 8 bits don't do; or {bitops: 0.03} or {size: 0.15} as shares of "
        "full precision.",
        {},
        keys=tuple(TARGETS),
    )
    full_precision_images: float = option(
        "Share of the calibration images, the most complex ones; images as complex as these run in "
        "full precision, and files hold the float weights too. A target of quality chooses them "
        "itself.",
        0.0,
        minimum=0,
        valid="0, or a share below 1",
    )
    ingredients: Mapping[str, object] = option(
        "Single choices of the recipe replaced: {allocate: false}; see quantization/recipes.py.",
        {},
        keys=tuple(INGREDIENTS),
    )

    def __post_init__(self) -> None:
        _check_choice("recipe", self.recipe, RECIPES)
        _check_choice("engine", self.engine, ENGINES)
        check_ingredients(self.recipe, self.ingredients)
        self._check_target()
        self._check_full_precision_images()
        if self.observer is not None:
            _check_choice("observer", self.observer, OBSERVERS)
        for key in ("fully_quantized", "attention_products"):
            value = getattr(self, key)
            if not isinstance(value, bool):
                raise OptionError(f"{key}: {value!r} is not true or false")
        for key in PATTERN_KEYS:
            _check_patterns(key, getattr(self, key))
        if self.in_channels is not None:
            check_range("in_channels", self.in_channels, 1, MAX_CHANNELS)
        if self.size_multiple is not None:
            check_range("size_multiple", self.size_multiple, 1, MAX_SIZE_MULTIPLE)
        self._check_bits("w_bits", self.w_bits, MIN_BITS)
        self._check_bits("a_bits", self.a_bits, self.preset.arithmetic.min_a_bits)
        self._check_layers()
        self._check_engine()
        self._check_bit_range()

    @cached_property
    def preset(self) -> Recipe:
        """The recipe that ``recipe`` names, with its ``ingredients`` replaced."""
        return RECIPES[self.recipe].with_ingredients(self.ingredients)

    @property
    def arithmetic(self) -> Arithmetic:
        """What the quantized network is, as far as the engine has it."""
        return self.integers_of.restrict(self.preset.arithmetic)

    @property
    def integers_of(self) -> Engine:
        """The engine that ``engine`` names."""
        return ENGINES[self.engine]

    @property
    def folds_channel_scales(self) -> bool:
        """Whether weights take over the scales of channels, as the engine has none for them."""
        return self.calibration.reconstruct and not self.integers_of.channel_scales

    @property
    def calibration(self) -> Calibration:
        """How it is calibrated."""
        return self.preset.calibration

    @property
    def finetuning(self) -> Finetuning:
        """How it is fine-tuned."""
        return self.preset.finetuning

    def _check_target(self) -> None:
        if not isinstance(self.target, Mapping) or len(self.target) > 1:
            names = ", ".join(TARGETS)
            raise OptionError(f"target: {self.target!r} is not one of {names} with its value")
        check_keys("target", self.target, TARGETS)
        for key, value in self.target.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 < value < TARGETS[key]:
                raise OptionError(
                    f"target: {key}: {value!r} is out of range; valid: above 0 and below "
                    f"{TARGETS[key]}"
                )
        if self.target and not self.calibration.allocate:
            able = [name for name, recipe in RECIPES.items() if recipe.calibration.allocate]
            raise OptionError(
                f"target: recipe {self.recipe!r} doesn't allocate bits; valid: {', '.join(able)}"
            )

    def _check_full_precision_images(self) -> None:
        share = self.full_precision_images
        where = f"full_precision_images: {share!r}"
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not is_number or not 0 <= share < 1:
            raise OptionError(f"{where} is out of range; valid: 0, or a share below 1")
        if share and self.target:
            raise OptionError(f"{where} with target: {dict(self.target)}: give one of the two")
        if share and not self.integers_of.image_classes:
            able = [name for name, engine in ENGINES.items() if engine.image_classes]
            raise OptionError(
                f"{where} with engine: {self.engine}, whose files hold one graph for all images; "
                f"valid: engine: {', '.join(able)}"
            )

    def _check_engine(self) -> None:
        if self.engine == DEFAULT_ENGINE:
            return
        if not self.preset.arithmetic.integer:
            raise OptionError(
                f"engine: {self.engine} runs integers, and recipe {self.recipe!r} has none; valid: "
                f"recipe {INTEGER_RECIPES}"
            )
        fewest = self.integers_of.min_a_bits
        for key, value in self._all_bits("a_bits").items():
            if value < fewest:
                raise OptionError(
                    f"{key}: {value} with engine: {self.engine}, which takes activations of "
                    f"{fewest} bits; set a_bits: {fewest} (w_bits may be fewer)"
                )
        most = self.integers_of.max_w_bits
        for key, value in self._all_bits("w_bits").items():
            if most < value <= MAX_BITS:
                raise OptionError(
                    f"{key}: {value} with engine: {self.engine}, which takes weights of at most "
                    f"{most} bits; set w_bits: {most}"
                )

    def _all_bits(self, kind: str) -> dict[str, int]:
        """Bits of a kind, ``w_bits`` or ``a_bits``, of the network and of single layers, by key."""
        found = {kind: getattr(self, kind)}
        for pattern, bits in self.layers.items():
            if kind in bits:
                found[f"layers: {pattern}: {kind}"] = bits[kind]
        return found

    def _check_bit_range(self) -> None:
        """A range that leaves out the bits asked for would give others without a word."""
        low, high = self.arithmetic.bit_range
        if self.a_bits != FLOAT_BITS and not low <= self.a_bits <= high:
            raise OptionError(
                f"ingredients: bit_range: {[low, high]} leaves out a_bits: {self.a_bits}"
            )

    def _check_layers(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise OptionError(f"layers: {self.layers!r} is not a mapping from patterns to bits")
        lowest = {"w_bits": MIN_BITS, "a_bits": self.preset.arithmetic.min_a_bits}
        for pattern, bits in self.layers.items():
            if not isinstance(bits, Mapping):
                raise OptionError(
                    f"layers: {pattern}: {bits!r} is not a mapping; give w_bits, a_bits or both"
                )
            check_keys(f"layers: {pattern}", bits, lowest)
            for key, value in bits.items():
                self._check_bits(f"layers: {pattern}: {key}", value, lowest[key])

    def _check_bits(self, key: str, bits: int, lowest: int) -> None:
        if isinstance(bits, str):
            raise OptionError(f"{key}: {bits!r} is text; give the number without quotes")
        is_number = isinstance(bits, int) and not isinstance(bits, bool)
        if is_number and (lowest <= bits <= MAX_BITS or bits == FLOAT_BITS):
            return
        why = f" with recipe {self.recipe}" if lowest > MIN_BITS else ""
        raise OptionError(
            f"{key}: {bits!r} is out of range; valid{why}: {lowest} to {MAX_BITS}, or "
            f"{FLOAT_BITS} for full precision"
        )


def describe_config(config: QuantizationConfig) -> dict[str, Any]:
    """Options that give ``config`` again, in JSON's types.

    They hold whatever the recipe's name stands for today, so that later versions of the recipe
    don't change networks that exist.
    """
    described = {}
    for field in fields(config):
        described[field.name] = getattr(config, field.name)
    ingredients = dict(config.ingredients)
    for name in ARITHMETIC_INGREDIENTS:
        ingredients[name] = config.preset.ingredient(name)
    described["ingredients"] = ingredients
    plain: dict[str, Any] = json.loads(json.dumps(described, default=dict))
    return plain


def check_ingredients(recipe: str, ingredients: Mapping[str, Any]) -> None:
    """Check that each of ``ingredients`` is a choice of a recipe, with a value of its kind.

    Raises:
        OptionError: One isn't.
    """
    if not isinstance(ingredients, Mapping):
        raise OptionError(
            f"ingredients: {ingredients!r} is not a mapping from fields of a recipe to values"
        )
    check_keys("ingredients", ingredients, INGREDIENTS)
    for key, value in ingredients.items():
        name = f"ingredients: {key}"
        usual = RECIPES[recipe].ingredient(key)
        if not _is_of_kind(value, usual):
            raise OptionError(
                f"{name}: {value!r} is not of the kind of {usual!r}, the recipe's own"
            )
        if key in INGREDIENT_CHOICES:
            chosen = [value] if isinstance(value, str) else value
            for choice in chosen:
                _check_choice(name, choice, INGREDIENT_CHOICES[key])
        elif isinstance(usual, tuple):
            _check_pair(name, value, usual, INGREDIENT_RANGES[key])


def _is_of_kind(value: object, usual: object) -> bool:
    """Whether ``value`` could stand where ``usual`` does; None stands for no number."""
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    if isinstance(usual, str):
        return isinstance(value, str)
    if isinstance(usual, int):
        return isinstance(value, int)
    if isinstance(usual, tuple):
        return isinstance(value, (list, tuple))
    return isinstance(value, (int, float))


def _check_pair(
    name: str, value: Sequence[Any], usual: tuple[float, float], valid: tuple[int, int]
) -> None:
    kinds: type | tuple[type, ...] = int if isinstance(usual[0], int) else (int, float)
    is_pair = len(value) == 2 and all(isinstance(end, kinds) for end in value)
    if not is_pair or value[0] > value[1]:
        raise OptionError(
            f"{name}: {value!r} is not a pair of numbers in ascending order like {list(usual)}"
        )
    if value[0] < valid[0] or value[1] > valid[1]:
        raise OptionError(f"{name}: {value!r} is out of range; valid: {valid[0]} to {valid[1]}")


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    valid = list(choices)  # a list compares, where a mapping would hash what may have no hash
    if value not in valid:
        raise OptionError(f"{key}: unknown value {value!r}; {did_you_mean(value, valid)}")


def _check_patterns(key: str, patterns: Sequence[str]) -> None:
    is_list = isinstance(patterns, (list, tuple))
    if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
        raise OptionError(f"{key}: {patterns!r} is not a list of patterns such as ['body.0']")
