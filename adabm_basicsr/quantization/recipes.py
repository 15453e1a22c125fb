"""Recipes: named ways to quantize, each in three tables of choices.

- `Arithmetic`: what the quantized network *is*. It lasts as long as the network.
- `Calibration`: how ranges and bits are found. It is needed once, before fine-tuning.
- `Finetuning`: what is trained, and how. It is needed while training.

A recipe has no code of its own: whatever differs between recipes is a field here, and who reads the
field acts on it. ``ingredients`` in an option file replace single choices; `INGREDIENTS` says which
fields each of them sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

OBSERVERS = ("minmax", "percentile", "omse")
PIXEL_LOSSES = ("l1", "rms")
PHASES = ("weight_range", "activation_range", "bit_mapping", "distillation")


@dataclass(frozen=True)
class Arithmetic:
    """What a quantized network is, and computes.

    Attributes:
        adaptive: Whether bits or ranges follow layer and image.
        integer: Whether integer arithmetic reproduces the quantizers: weights are signed integers
            with a scale per output channel, activations have an integer zero point, and batch
            normalisation is folded.
        own_bits: Whether layers and weights hold bits that were shared out among them. The layer
            factor may then go beyond one bit.
        channel_grids: Whether each input channel has a scale and a zero point of its own.
        corrections: Whether weights and biases have corrections, which are learned.
        image_bits: Bits that the simplest and the most complex class of images add to a layer's.
        image_ranges: Whether each class of images has clipping ranges of its own.
        bit_range: Smallest and largest bit-width that a layer may use on an image.
        min_a_bits: Smallest base bits that the recipe takes.
        max_w_bits: Largest bit-width of weights.
    """

    adaptive: bool
    integer: bool
    own_bits: bool
    channel_grids: bool
    corrections: bool
    image_bits: tuple[int, int] = (-1, 1)
    image_ranges: bool = False
    bit_range: tuple[int, int] = (2, 8)
    min_a_bits: int = 2
    max_w_bits: int = 8


@dataclass(frozen=True)
class Calibration:
    """How ranges, bits and roundings are found from low-resolution images.

    Attributes:
        observer: How activation ranges are found, one of `OBSERVERS`.
        image_percentiles: Shares of the calibration images below the two thresholds of complexity.
            The first doesn't count where simple images have no bits of their own.
        pooled_thresholds: Whether these shares are of all images together; otherwise thresholds are
            a moving average over batches.
        relative_sensitivity: Whether a layer's sensitivity is measured in units of its own range.
        outer_ranges_at_base_bits: Whether weight ranges of head and tail are searched at the bits
            of the body, as the published code does.
        allocate: Whether bits of layers and weights follow from how much their errors change the
            image, within the bits asked for on average.
        reconstruct: Whether layers are fitted one by one to their full-precision outputs.
        clip: Whether bit-aware clipping (BaC) runs at the first quantized forward pass.
    """

    observer: str
    image_percentiles: tuple[float, float]
    pooled_thresholds: bool
    relative_sensitivity: bool
    outer_ranges_at_base_bits: bool
    allocate: bool
    reconstruct: bool
    clip: bool


@dataclass(frozen=True)
class Finetuning:
    """What fine-tuning trains, and how.

    Attributes:
        phases: What is trained, an epoch each in turn, of `PHASES`.
        learning_rates: Of what is trained, by name. Those of ranges, weight corrections and biases
            are in units of their own where steps are relative.
        relative_steps: Whether steps are in units of each parameter's own, so that learning doesn't
            depend on a network's internal scale.
        lr_decay: Factor on a phase's learning rates after each of its own epochs; None for half a
            cosine over the run.
        iterations: Length of the run where ``train: total_iter`` doesn't say it.
        feature_weight: Weight of the feature loss.
        pixel_loss: Distance of images, one of `PIXEL_LOSSES`.
        fixed_crops: Whether each epoch sees the same patches, so that the teacher runs once on
            each. The dataset's option of that name overrides it.
        keep_best: Whether the state of smallest loss is kept, be it the calibrated one, rather than
            the last.
    """

    phases: tuple[str, ...]
    learning_rates: Mapping[str, float]
    relative_steps: bool
    lr_decay: float | None
    iterations: int
    feature_weight: float
    pixel_loss: str
    fixed_crops: bool
    keep_best: bool


@dataclass(frozen=True)
class Recipe:
    """A named way to quantize.

    Attributes:
        arithmetic: What the quantized network is.
        calibration: How it is calibrated.
        finetuning: How it is fine-tuned.
    """

    arithmetic: Arithmetic
    calibration: Calibration
    finetuning: Finetuning

    def ingredient(self, name: str) -> object:
        """The recipe's own choice for an ingredient, a key of `INGREDIENTS`."""
        table, field = INGREDIENTS[name][0]
        return getattr(getattr(self, table), field)

    def with_ingredients(self, ingredients: Mapping[str, object]) -> Recipe:
        """The recipe with single choices replaced; lists become tuples."""
        tables = {table.name: getattr(self, table.name) for table in fields(self)}
        for name, value in ingredients.items():
            choice = tuple(value) if isinstance(value, list) else value
            for table, field in INGREDIENTS[name]:
                tables[table] = replace(tables[table], **{field: choice})
        return Recipe(**tables)


# Which fields each ingredient of an option file sets; the first of them is what it reads as.
INGREDIENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "adaptive": (("arithmetic", "adaptive"),),
    "observer": (("calibration", "observer"),),
    "clip": (("calibration", "clip"),),
    "phases": (("finetuning", "phases"),),
    "integer": (("arithmetic", "integer"),),
    "scale_free": (("finetuning", "relative_steps"), ("calibration", "relative_sensitivity")),
    "lr_decay": (("finetuning", "lr_decay"),),
    "iterations": (("finetuning", "iterations"),),
    "feature_weight": (("finetuning", "feature_weight"),),
    "pixel_loss": (("finetuning", "pixel_loss"),),
    "reconstruct": (
        ("arithmetic", "corrections"),
        ("arithmetic", "channel_grids"),
        ("calibration", "reconstruct"),
    ),
    "allocate": (
        ("arithmetic", "own_bits"),
        ("calibration", "allocate"),
        ("calibration", "pooled_thresholds"),
    ),
    "image_bits": (("arithmetic", "image_bits"),),
    "image_ranges": (("arithmetic", "image_ranges"),),
    "image_percentiles": (("calibration", "image_percentiles"),),
    "fixed_crops": (("finetuning", "fixed_crops"),),
    "keep_best": (("finetuning", "keep_best"),),
    "bit_range": (("arithmetic", "bit_range"),),
    "min_a_bits": (("arithmetic", "min_a_bits"),),
}
# What an ingredient may be, where not every value of its kind will do.
INGREDIENT_CHOICES: dict[str, tuple[str, ...]] = {
    "observer": OBSERVERS,
    "phases": PHASES,
    "pixel_loss": PIXEL_LOSSES,
}
# What the two numbers of an ingredient lie between.
INGREDIENT_RANGES: dict[str, tuple[int, int]] = {
    "image_percentiles": (0, 1),
    "image_bits": (-8, 8),
    "bit_range": (1, 10),
}
# Ingredients that say what the network is. Checkpoints keep them, as a recipe may change later.
ARITHMETIC_INGREDIENTS = (
    "adaptive",
    "integer",
    "allocate",
    "reconstruct",
    "image_bits",
    "image_ranges",
    "bit_range",
)

PAPER_RATES = {
    "weight_range": 0.01,
    "activation_range": 0.01,
    "layer_factor": 0.01,
    "image_threshold": 0.1,
}
RELATIVE_RATES = {
    "weight_range": 0.004,
    "activation_range": 0.002,
    "layer_factor": 0.01,
    "image_threshold": 0.1,
    "weight_correction": 0.03,
    "bias": 0.01,
}

# The published method to the letter; docs/paper.md goes through it step by step.
PAPER = Recipe(
    Arithmetic(
        adaptive=True,
        integer=False,
        own_bits=False,
        channel_grids=False,
        corrections=False,
        image_bits=(-1, 1),
        image_ranges=False,
        bit_range=(1, 10),  # the paper doesn't clamp: 8 base bits may become 10, and 3 become 1
        min_a_bits=3,
    ),
    Calibration(
        observer="minmax",
        image_percentiles=(0.1, 0.9),
        pooled_thresholds=False,
        relative_sensitivity=False,
        outer_ranges_at_base_bits=True,
        allocate=False,
        reconstruct=False,
        clip=True,
    ),
    Finetuning(
        phases=("weight_range", "activation_range", "bit_mapping"),
        learning_rates=PAPER_RATES,
        relative_steps=False,
        lr_decay=0.9,
        iterations=400,
        feature_weight=10.0,
        pixel_loss="l1",
        fixed_crops=False,
        keep_best=False,
    ),
)
BEST = Recipe(
    Arithmetic(
        adaptive=True,
        integer=True,
        own_bits=True,
        channel_grids=True,
        corrections=True,
        # Complex images need wider ranges rather than more bits. Simple ones lose as much by one
        # bit less as others do, and large photographs are mostly simple (docs/adaptivity.md).
        image_bits=(0, 0),
        image_ranges=True,
    ),
    Calibration(
        observer="minmax",
        image_percentiles=(0.03, 0.7),
        pooled_thresholds=True,
        relative_sensitivity=True,
        outer_ranges_at_base_bits=False,
        allocate=True,
        reconstruct=True,
        clip=False,
    ),
    Finetuning(
        phases=("distillation",),
        learning_rates=RELATIVE_RATES,
        relative_steps=True,
        lr_decay=None,
        iterations=400,
        feature_weight=0.0,
        pixel_loss="rms",
        fixed_crops=True,
        keep_best=True,
    ),
)
STATIC = Recipe(
    Arithmetic(
        adaptive=False,
        integer=True,
        own_bits=False,
        channel_grids=False,
        corrections=False,
    ),
    Calibration(
        observer="minmax",
        image_percentiles=(0.1, 0.9),
        pooled_thresholds=False,
        relative_sensitivity=True,
        outer_ranges_at_base_bits=False,
        allocate=False,
        reconstruct=False,
        clip=False,
    ),
    Finetuning(
        phases=(),
        learning_rates=RELATIVE_RATES,
        relative_steps=True,
        lr_decay=0.9,
        iterations=0,
        feature_weight=10.0,
        pixel_loss="l1",
        fixed_crops=False,
        keep_best=True,
    ),
)
RECIPES = {
    "paper": PAPER,
    "best": BEST,
    "static": STATIC,
    "fast": replace(BEST, finetuning=replace(BEST.finetuning, iterations=20)),
    "thorough": replace(BEST, finetuning=replace(BEST.finetuning, iterations=1200)),
}
# Names of those whose quantizers integer arithmetic reproduces, for messages.
INTEGER_RECIPES = ", ".join(name for name, recipe in RECIPES.items() if recipe.arithmetic.integer)
