"""The table of options: every key of an option file, its kind, its default and what it does.

From it come the checks (`options.checks`), the defaults, the table of docs/options.md and the JSON
Schema that editors read (`options.schema`). Options of the method stand on the fields of its own
dataclasses, and are read from there.

None stands for the default of every key. What belongs to BasicSR's own models, data sets and
metrics isn't in the table, and is left to BasicSR.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from adabm_basicsr.data.calibration_dataset import CalibrationOptions
from adabm_basicsr.data.clip_dataset import ClipOptions
from adabm_basicsr.data.headers import MAX_PIXELS, OPENCV_PIXELS
from adabm_basicsr.deployment.tiles import DEFAULT_OVERLAP
from adabm_basicsr.options.from_dataclass import read_fields
from adabm_basicsr.options.kinds import (
    Count,
    Flag,
    Frequency,
    Gpus,
    Interval,
    Iterations,
    Kind,
    Name,
    Numbers,
    OpenSection,
    Overlap,
    Positive,
    Prefetch,
    Range,
    Size,
    Suffix,
    Text,
    Texts,
    Whole,
)
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.finetuning.finetune import FinetuneSettings


class Section(BaseModel):
    """A section of an option file.

    Attributes:
        further: Kinds of keys that BasicSR's own classes have in this section, by pattern.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    further: ClassVar[dict[str, Any]] = {}


def option(description: str, default: Any = None) -> Any:
    """A key of a section: what it does, and its value where the file doesn't give it."""
    return Field(default=default, description=description)


def needed(description: str) -> Any:
    """A key that a file must give."""
    return Field(description=description)


class IoBackend(Section):
    """Where the images of a data set are kept."""

    type: Literal["disk", "lmdb"] = option("A folder of files, or an LMDB.", "disk")
    readonly: Flag = option("Of an LMDB.", True)
    lock: Flag = option("Of an LMDB.", False)
    readahead: Flag = option("Of an LMDB.", False)


class Dataset(Section):
    """A data set of any type."""

    further: ClassVar[dict[str, Any]] = {
        "dataroot_*": Text,
        "use_*": Flag,
        "seed": Whole,
        "filename_tmpl": Text,
        "color": Text,
        "mean": Numbers,
        "std": Numbers,
    }

    name: Name = needed("Name of the set in logs, reports and folders.")
    type: Text = needed(
        "CalibrationDataset to train, ClipCalibrationDataset for networks that take clips; "
        "PairedImageDataset, or SingleImageDataset without ground truth, to validate; "
        "VideoTestDataset and BasicSR's other video test sets for clips."
    )
    io_backend: IoBackend = option("Where the images are kept.")
    meta_info_file: Text = option("List of file names below the data root, one a line.")
    batch_size_per_gpu: Annotated[Count, Kind("a whole number")] = option(
        "Images or patches of a batch (needed to train)."
    )
    num_worker_per_gpu: Annotated[Overlap, Kind("a whole number")] = option(
        "Processes that load images (needed to train)."
    )
    prefetch_mode: Prefetch = option("How batches are loaded ahead.")
    num_prefetch_queue: Count = option("How many batches cpu loads ahead.", 1)
    pin_memory: Flag = option("Whether batches are kept where a GPU fetches them quickly.", False)
    persistent_workers: Flag = option("Whether workers live from epoch to epoch.", False)


class ImageDataset(Dataset):
    """Images to validate on: PairedImageDataset or SingleImageDataset."""

    dataroot_lq: Text = needed("Folder or LMDB of the low-resolution images.")
    dataroot_gt: Text = option("Folder or LMDB of the ground truth (PairedImageDataset).")
    filename_tmpl: Text = option("Name of a low-resolution image; {} is that of its truth.", "{}")
    max_pixels: Annotated[int, Field(ge=1, le=OPENCV_PIXELS), Range(f"1 to {OPENCV_PIXELS}")] = (
        option("Larger images are rejected: they may be made to fill the memory.", MAX_PIXELS)
    )
    color: Text = option("y: the Y channel alone.")
    mean: Numbers = option("Means of the channels, to subtract.")
    std: Numbers = option("Standard deviations of the channels, to divide by.")
    gt_size: Count = option("Side of patches, when BasicSR's own models train.")
    use_hflip: Flag = option("Whether patches are flipped, when BasicSR's own models train.")
    use_rot: Flag = option("Whether patches are rotated, when BasicSR's own models train.")
    use_shuffle: Flag = option("Whether images are shuffled, when BasicSR's own models train.")
    dataset_enlarge_ratio: Positive = option("How many times an epoch sees each image.", 1)


CalibrationDataset = create_model(
    "CalibrationDataset",
    __base__=Dataset,
    __doc__="Images to calibrate and fine-tune on: low-resolution ones alone.",
    **read_fields(CalibrationOptions),
)
ClipCalibrationDataset = create_model(
    "ClipCalibrationDataset",
    __base__=Dataset,
    __doc__="Clips to calibrate and fine-tune on: low-resolution ones alone.",
    **read_fields(ClipOptions),
)


class ClipDataset(Dataset):
    """Clips to validate on, by BasicSR's video datasets."""

    dataroot_lq: Text = needed("Folder of the low-resolution clips, each a folder of frames.")
    dataroot_gt: Text = needed("Folder of the ground truth, laid out alike.")
    num_frame: Whole = option(
        "Frames of a window, an odd number (needed, but for VideoRecurrentTestDataset, which gives "
        "whole clips)."
    )
    padding: Literal["replicate", "reflection", "reflection_circle", "circle"] = option(
        "What stands in for frames before the first and after the last.", "reflection"
    )
    cache_data: Flag = option(
        "Whether all frames are kept in memory; VideoRecurrentTestDataset always does.", False
    )
    max_pixels: Annotated[int, Field(ge=1, le=OPENCV_PIXELS), Range(f"1 to {OPENCV_PIXELS}")] = (
        option("Larger frames are rejected: they may be made to fill the memory.", MAX_PIXELS)
    )
    use_duf_downsampling: Flag = option("Of VideoTestDUFDataset: LR frames by DUF's own filter.")


IMPORTS = "Modules that register your own architectures; importing them runs their code."


class DescribedNetwork(Section):
    """``network_g`` of a test whose checkpoint describes the network."""

    custom_imports: Texts = option(IMPORTS, [])


class PlainNetwork(Section):
    """A network in full precision; its further keys are those of the architecture."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text = needed("A registered architecture.")
    custom_imports: Texts = option(IMPORTS, [])


class Architecture(Section):
    """The network to quantize; its further keys are those of the architecture."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text = needed("A registered architecture.")


class WrappedNetwork(Section):
    """The keys of AdaBMNetwork that aren't of the method."""

    type: Literal["AdaBMNetwork"] = needed("AdaBMNetwork, which quantizes another network.")
    network: Architecture = option("type and options of a registered architecture (needed).")
    custom_imports: Texts = option(IMPORTS, [])


AdaBMNetwork = create_model(
    "AdaBMNetwork",
    __base__=WrappedNetwork,
    __doc__="A network to quantize, and how.",
    **read_fields(QuantizationConfig, checks_itself=True),
)


class Paths(Section):
    """Checkpoints to begin with."""

    further: ClassVar[dict[str, Any]] = {
        "pretrain_*": Text,
        "param_key_*": Text,
        "strict_load_*": Flag,
    }

    pretrain_network_g: Text = option("Checkpoint of the network, plain or quantized.")
    param_key_g: Text = option("Which of several state dicts of the checkpoint to take.", "params")
    strict_load_g: Flag = option("Whether the checkpoint must fit, in BasicSR's own models.", True)
    resume_state: Text = option("Training state to go on from.")
    ignore_resume_networks: Texts = option("Networks that a resumed run doesn't take up.", [])


Rate = Annotated[float, Field(ge=0), Kind("a number of at least 0")]
RATES = {
    "weight_range": "Of the ranges of weights.",
    "activation_range": "Of the ranges of activations.",
    "layer_factor": "Of the bits that a layer adds.",
    "image_threshold": "Of the thresholds between image classes.",
    "weight_correction": "Of how weights are rounded.",
    "bias": "Of biases.",
}
_rates: dict[str, Any] = {key: (Rate, option(text)) for key, text in RATES.items()}
LearningRates = create_model(
    "LearningRates",
    __base__=Section,
    __doc__="Learning rates of fine-tuning that differ from the recipe's own.",
    **_rates,
)
_settings = read_fields(FinetuneSettings)
_, _described = _settings["learning_rates"]
_settings["learning_rates"] = (LearningRates, _described)
_Finetune: Any = create_model(
    "Finetune",
    __base__=Section,
    __doc__="Constants of fine-tuning.",
    **_settings,
)


class Train(Section):
    """Training of a quantized network."""

    total_iter: Iterations = option(
        "Iterations of fine-tuning; the recipe's own by default: best and paper 400, fast 20, "
        "static 0."
    )
    calibration_batch_size: Count = option("Patches of a batch in calibration.", 16)
    finetune: _Finetune = option("Constants of fine-tuning.")
    pbar: Flag = option("Whether bars show progress, where there is a terminal.", True)


class Metric(Section):
    """A metric; its further keys are those of the function that computes it."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text = needed("calculate_psnr, calculate_ssim, calculate_self_psnr, ...")
    better: Text = option("higher or lower, whichever is better.", "higher")


class Validation(Section):
    """Validation."""

    val_freq: Frequency = option(
        "Iterations from one validation to the next; the end of a run is validated in any case."
    )
    save_img: Flag = option("Whether images are written.", False)
    suffix: Suffix = option("Suffix of written images; the run's name by default.")
    metrics: dict[str, Metric] = option("Metrics, each under a name of your own.")
    pbar: Flag = option("Whether bars show progress, where there is a terminal.", True)
    tile: Size = option(
        "Validate in tiles of so many LR pixels, each with the image class of its own content."
    )
    tile_overlap: Overlap = option(
        "LR pixels over which neighbouring tiles are blended, at most a third of a tile.",
        DEFAULT_OVERLAP,
    )


class Wandb(Section):
    """Weights & Biases; further keys are wandb's own."""

    model_config = ConfigDict(extra="allow", strict=True)

    project: Text = option("Project to log to; it follows TensorBoard.")
    resume_id: Text = option("Run to go on with.")


class Logger(Section):
    """Logging."""

    print_freq: Interval = option("Iterations between lines of the log (needed to train).")
    save_checkpoint_freq: Interval = option("Iterations between checkpoints (needed to train).")
    use_tb_logger: Flag = option("Whether TensorBoard gets losses, metrics and bits.", False)
    wandb: Wandb = option("Weights & Biases.")


class OptionFile(Section):
    """An option file."""

    name: Name = needed("Name of the run, and of its folder below experiments or results.")
    model_type: Text = needed("AdaBMModel; BasicSR's own models test a quantized network too.")
    scale: Count = option("How many times larger the network makes an image.")
    num_gpu: Gpus = needed("GPUs to use: auto for all, 0 for the CPU.")
    manual_seed: Whole = option("Seed of the run; drawn by default.")
    datasets: Annotated[dict[str, OpenSection], Kind("a section of keys")] = needed(
        "Data sets: train; val, val_2, ... while training; any names in a test."
    )
    network_g: OpenSection = option(
        "The network; a test may leave it out where the checkpoint describes it."
    )
    path: Paths = needed("Checkpoints to begin with.")
    train: Train = option("Training (needed to train).")
    val: Validation = option("Validation (needed to test).")
    logger: Logger = option("Logging (needed to train).")
    dist_params: OpenSection = option("backend and port of several processes.")
    find_unused_parameters: Flag = option("Of BasicSR's own models in several processes.", False)


# Sections as an option file nests them, by what leads to them; for the documentation.
SECTIONS: dict[str, type[Section]] = {
    "": OptionFile,
    "datasets: train": CalibrationDataset,
    "datasets: train (clips)": ClipCalibrationDataset,
    "datasets: val": ImageDataset,
    "datasets: val (clips)": ClipDataset,
    "datasets: NAME: io_backend": IoBackend,
    "network_g": AdaBMNetwork,
    "path": Paths,
    "train": Train,
    "train: finetune": _Finetune,
    "train: finetune: learning_rates": LearningRates,
    "val": Validation,
    "val: metrics: NAME": Metric,
    "logger": Logger,
    "logger: wandb": Wandb,
}
CALIBRATION_SETS: dict[str, type[Section]] = {
    "CalibrationDataset": CalibrationDataset,
    "ClipCalibrationDataset": ClipCalibrationDataset,
}
DATASETS: dict[str, type[Section]] = {
    **CALIBRATION_SETS,
    "PairedImageDataset": ImageDataset,
    "SingleImageDataset": ImageDataset,
    "VideoTestDataset": ClipDataset,
    "VideoTestDUFDataset": ClipDataset,
    "VideoRecurrentTestDataset": ClipDataset,
    "VideoTestVimeo90KDataset": ClipDataset,
}
