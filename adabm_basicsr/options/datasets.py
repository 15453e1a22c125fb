"""Checks the images that datasets are going to read and the metrics that judge them.

All of it before anything runs.
"""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY

from adabm_basicsr.data.frames import Size, list_clips
from adabm_basicsr.data.headers import check_max_pixels
from adabm_basicsr.data.images import decode_image, list_images, read_image
from adabm_basicsr.data.sources import (
    LMDB_LIST,
    backend_type,
    check_inside,
    open_lmdb,
    read_keys,
    read_names,
)
from adabm_basicsr.errors import ImageError, OptionError, check_keys, counted
from adabm_basicsr.files import holds_folders
from adabm_basicsr.options.clips import (
    CLIP_SETS,
    TRAINING_SET,
    check_clips,
    check_training_clips,
    set_clip_defaults,
)
from adabm_basicsr.options.paths import existing_folder

ROOTS = {
    "PairedImageDataset": ("dataroot_lq", "dataroot_gt"),
    "SingleImageDataset": ("dataroot_lq",),
}
CALIBRATION_CLIPS = "ClipCalibrationDataset"
# Of calibration sets: what finds the images or clips of a folder.
LISTS: dict[str, Callable[[Path, str], object]] = {
    "CalibrationDataset": lambda root, key: _images_in(root, key, [CALIBRATION_CLIPS]),
    CALIBRATION_CLIPS: lambda root, key: list_clips([root], key),
}
TRIED = 480  # pixels, at most, of the images that metrics are tried on


def check_datasets(opt: dict[str, Any]) -> list[Size]:
    """Check the options of datasets and the images that they name.

    Args:
        opt: Options that `check_table` has passed; backends and paths are filled in.

    Returns:
        Sizes of the images that metrics are computed on, as far as they are known.

    Raises:
        AdaBMError: The first mistake in them.
    """
    sizes = []
    for name, dataset in opt["datasets"].items():
        where = f"datasets: {name}"
        _check_options(where, dataset, opt)
        for key in ("dataroot_lq", "dataroot_gt"):
            if dataset.get(key) is not None:
                dataset[key] = existing_folder(f"{where}: {key}: folder", dataset[key])
        if dataset["type"] in ROOTS:
            sizes += check_images(where, dataset, opt.get("scale") or 1)
        elif dataset["type"] in CLIP_SETS:
            set_clip_defaults(where, dataset)
            sizes += check_clips(where, dataset, opt.get("scale") or 1, _sizes_of)
        elif dataset["type"] == TRAINING_SET:
            check_training_clips(where, dataset)
        elif dataset["type"] in LISTS and _lists_folder(dataset):
            find = LISTS[dataset["type"]]
            find(Path(dataset["dataroot_lq"]), f"{where}: dataroot_lq")
    _check_names(opt["datasets"])
    return sizes


def _check_names(datasets: dict[str, dict[str, Any]]) -> None:
    """Figures and pictures of validation sets are kept by their names."""
    owners: dict[str, str] = {}
    for key, dataset in datasets.items():
        if key.startswith("train"):
            continue
        name = dataset["name"]
        if name in owners:
            raise OptionError(
                f"datasets: {key}: name: {name!r} is that of {owners[name]} too; give each its own"
            )
        owners[name] = key


def _lists_folder(dataset: dict[str, Any]) -> bool:
    """Whether the images are all those of a folder."""
    if dataset["io_backend"]["type"] == "lmdb" or "meta_info_file" in dataset:
        return False
    return dataset.get("dataroot_lq") is not None


def _check_options(where: str, dataset: dict[str, Any], opt: dict[str, Any]) -> None:
    """Check what a dataset's options say together, and fill in its backend."""
    if dataset["type"] == "PairedImageDataset":
        if dataset.get("dataroot_gt") is None:
            raise OptionError(f"{where}: dataroot_gt is missing")
        if opt.get("scale") is None:
            raise OptionError(f"{where}: scale is missing from the option file")
    if dataset["type"] == "SingleImageDataset" and dataset.get("dataroot_gt") is not None:
        raise OptionError(
            f"{where}: dataroot_gt: a SingleImageDataset has no ground truth; PairedImageDataset "
            "has"
        )
    for key in ("meta_info_file", "filename_tmpl"):
        if dataset.get(key) is None:
            dataset.pop(key, None)  # BasicSR takes None for a file's name
    backend = dict(dataset.get("io_backend") or {})
    backend["type"] = backend_type(where, backend)
    if backend["type"] == "disk":
        check_keys(f"{where}: io_backend", backend, ["type"])
    dataset["io_backend"] = backend


def check_metrics(metrics: dict[str, dict[str, Any]], sizes: list[Size]) -> None:
    """Compute each metric on two images of noise, of the smallest size to come.

    Args:
        metrics: Options of ``val: metrics:``.
        sizes: Sizes of the images that they are going to judge.

    Raises:
        OptionError: One fails there, or has an option that it doesn't take.
    """
    height = min([TRIED, *[size[0] for size in sizes]])
    width = min([TRIED, *[size[1] for size in sizes]])
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    for name, options in metrics.items():
        _check_metric_options(f"val: metrics: {name}", options)
        problem = _metric_problem(options, noise)
        if problem:
            given = ", ".join(f"{key} {value!r}" for key, value in options.items() if key != "type")
            raise OptionError(
                f"val: metrics: {name}: with {given} it {problem} on an image of {width}x{height} "
                "pixels"
            )


def _metric_problem(options: dict[str, Any], images: np.ndarray) -> str | None:
    """What goes wrong when a metric is computed on two images; None if nothing does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = calculate_metric({"img": images[0], "img2": images[1]}, options)
        if math.isfinite(value):
            return None
    except Exception as error:  # whatever its own code raises
        return f"fails ({error})"
    return f"gives {value}"


def _check_metric_options(where: str, options: dict[str, Any]) -> None:
    """Metrics take any further argument and ignore it, as BasicSR's do.

    So what is like one of their own arguments is a mistake.
    """
    parameters = inspect.signature(METRIC_REGISTRY.get(options["type"])).parameters
    own = ["type", "better"]
    own += [key for key in parameters if key not in ("img", "img2")]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in options.items():
        if not takes_any or difflib.get_close_matches(key, own):
            check_keys(where, [key], own)
        if key not in parameters:
            continue
        usual = parameters[key].default
        if isinstance(usual, bool) and not isinstance(value, bool):
            raise OptionError(f"{where}: {key}: {value!r} is not true or false")


def check_images(where: str, dataset: dict[str, Any], scale: int) -> list[Size]:
    """Decode all images of a dataset and pair them as BasicSR does.

    Args:
        where: What to call the dataset in an error.
        dataset: Options of a `PairedImageDataset` or `SingleImageDataset`.
        scale: How much larger than LR images the ground truth is.

    Returns:
        Sizes of the images that metrics are computed on.

    Raises:
        ImageError: An image is missing, broken or of a kind that BasicSR misreads, or a pair
            doesn't fit.
        OptionError: The options don't fit one another.
    """
    max_pixels = check_max_pixels(f"{where}: max_pixels", dataset.get("max_pixels"))
    names = _names(where, dataset)
    sizes = {key: _sizes(dataset, key, names[key], max_pixels) for key in names}
    if "dataroot_gt" in names:
        for index, (height, width) in enumerate(sizes["dataroot_lq"]):
            truth_height, truth_width = sizes["dataroot_gt"][index]
            if truth_height < scale * height or truth_width < scale * width:
                truth = Path(dataset["dataroot_gt"], names["dataroot_gt"][index])
                image = Path(dataset["dataroot_lq"], names["dataroot_lq"][index])
                raise ImageError(
                    f"{where}: {truth} is less than {scale} (scale) times as large as {image}"
                )
    return [(height * scale, width * scale) for height, width in sizes["dataroot_lq"]]


def _names(where: str, dataset: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the images below each data root, or keys; those of a pair at the same place."""
    roots = {key: Path(dataset[key]) for key in ROOTS[dataset["type"]]}
    if dataset["io_backend"]["type"] == "lmdb":
        return _lmdb_keys(where, roots)
    last = list(roots)[-1]  # BasicSR goes by the names of the ground truth, where there is one
    if "meta_info_file" in dataset:
        names = read_names(dataset["meta_info_file"], roots[last])
    else:
        found = {key: _folder_names(f"{where}: {key}", root) for key, root in roots.items()}
        names = found[last]
        if len(names) != len(found["dataroot_lq"]):
            count = counted(len(found["dataroot_lq"]), "images")
            raise OptionError(f"{where}: dataroot_lq holds {count}, dataroot_gt {len(names)}")
    if "dataroot_gt" not in roots:
        return {"dataroot_lq": names}
    lq_names = [_lq_name(where, dataset, name) for name in names]
    return {"dataroot_lq": lq_names, "dataroot_gt": names}


def _lmdb_keys(where: str, roots: dict[str, Path]) -> dict[str, list[str]]:
    found = {}
    for key, root in roots.items():
        if root.suffix != ".lmdb":
            raise OptionError(f"{where}: {key}: {root} must end in .lmdb")
        found[key] = sorted(read_keys(root / LMDB_LIST, root))
    different = {tuple(keys) for keys in found.values()}
    if len(different) > 1:
        raise OptionError(
            f"{where}: the lists of dataroot_lq and dataroot_gt name different images"
        )
    return found


def _images_in(folder: Path, key: str, sets_of_clips: Sequence[str]) -> list[Path]:
    """Images of a folder, see `list_images`; the error names sets of clips if it may hold these."""
    try:
        return list_images(folder, key)
    except ImageError as error:
        if not holds_folders(folder):
            raise
        raise ImageError(
            f"{error}, but folders; for clips set type: {' or '.join(sets_of_clips)}"
        ) from error


def _folder_names(key: str, folder: Path) -> list[str]:
    """Names of the images in a folder that holds nothing else.

    BasicSR reads every file of the folder, and fails deep inside at one that isn't an image.
    """
    paths = _images_in(folder, key, list(CLIP_SETS))
    strays = set(folder.iterdir()) - set(paths)
    for stray in sorted(strays):
        if stray.is_file() and not stray.name.startswith("."):
            raise ImageError(f"{key}: {stray} is not an image")
    return [path.name for path in paths]


def _lq_name(where: str, dataset: dict[str, Any], gt_name: str) -> str:
    path = Path(gt_name)
    template = dataset.get("filename_tmpl", "{}")
    if any(template.count(part) != 1 for part in ("{}", "{", "}")):
        raise OptionError(
            f"{where}: filename_tmpl: {template!r} must hold {{}} once, in place of the image's "
            "name"
        )
    name = template.format(path.stem) + path.suffix
    check_inside(name, dataset["dataroot_lq"], f"{where}: filename_tmpl")
    return name


def _sizes(dataset: dict[str, Any], key: str, names: Sequence[str], max_pixels: int) -> list[Size]:
    """Sizes of the images below a data root; each is decoded whole."""
    root = Path(dataset[key])
    if dataset["io_backend"]["type"] == "lmdb":
        sizes = []
        with open_lmdb(root) as read:
            for name in names:
                image = decode_image(read(name), f"{root}:{name}", 3, max_pixels)
                sizes.append(_size(image, name))
        return sizes

    return _sizes_of([root / name for name in names], max_pixels)


def _sizes_of(paths: Sequence[Path], max_pixels: int) -> list[Size]:
    """Sizes of image files; each is decoded whole."""

    def size_of(path: Path) -> Size:
        return _size(read_image(path, 3, max_pixels), path.name)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(size_of, paths))


def _size(image: np.ndarray, name: str) -> Size:
    if image.dtype == np.float32:
        raise ImageError(f"image {name} has float values, which BasicSR doesn't read")
    height, width = image.shape[:2]
    return height, width
