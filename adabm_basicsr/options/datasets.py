"""Checks the images that datasets are going to read and the metrics that judge them, before anything runs."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY

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
from adabm_basicsr.errors import AdaBMError, check_keys, not_found

ROOTS = {
    "PairedImageDataset": ("dataroot_lq", "dataroot_gt"),
    "SingleImageDataset": ("dataroot_lq",),
}
KEYS = (
    "name", "type", "phase", "scale", "dataroot_lq", "dataroot_gt", "meta_info_file", "io_backend", "filename_tmpl",
    "color", "mean", "std", "max_pixels", "gt_size", "use_hflip", "use_rot", "use_shuffle", "batch_size_per_gpu",
    "num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode", "num_prefetch_queue", "pin_memory",
    "persistent_workers",
)  # fmt: skip

BACKEND_KEYS = ("type", "readonly", "lock", "readahead")
TRIED = 480  # pixels, at most, of the images that metrics are tried on

Size = tuple[int, int]  # height and width


def check_datasets(opt: dict) -> list[Size]:
    """Raise `AdaBMError` for the first mistake in the options of datasets, or in the validation images.

    Returns:
        Sizes of the images that metrics are computed on, as far as they are known.
    """
    sizes = []
    for name, dataset in opt["datasets"].items():
        where = f"datasets: {name}"
        _check_options(where, dataset, opt)
        for key in ("dataroot_lq", "dataroot_gt"):
            if dataset.get(key) is not None:
                dataset[key] = os.path.expanduser(dataset[key])
                if not os.path.isdir(dataset[key]):
                    raise not_found(f"{where}: {key}: folder", dataset[key])
        if dataset["type"] in ROOTS:
            sizes += check_images(where, dataset, opt.get("scale") or 1)
        elif dataset["type"] == "CalibrationDataset" and _lists_folder(dataset):
            list_images(dataset["dataroot_lq"], f"{where}: dataroot_lq")
    _check_names(opt["datasets"])
    return sizes


def _check_names(datasets: dict[str, dict]) -> None:
    """Figures and pictures of validation sets are kept by their names."""
    found = {}
    for key, dataset in datasets.items():
        other = key if key.startswith("train") else found.setdefault(dataset["name"], key)
        if other != key:
            raise AdaBMError(
                f"datasets: {key}: name: {dataset['name']!r} is that of {other} too; give each its own"
            )


def _lists_folder(dataset: dict) -> bool:
    named = dataset["io_backend"]["type"] == "lmdb" or "meta_info_file" in dataset
    return not named and dataset.get("dataroot_lq") is not None


def _check_options(where: str, dataset: dict | None, opt: dict) -> None:
    dataset = {} if dataset is None else dataset
    for key in ("name", "type", *ROOTS.get(dataset.get("type"), ())):
        if dataset.get(key) is None:
            raise AdaBMError(f"{where}: {key} is missing")
    if dataset["type"] in ROOTS and opt.get("model_type") == "AdaBMModel":
        check_keys(where, dataset, KEYS)
    if dataset["type"] == "PairedImageDataset" and opt.get("scale") is None:
        raise AdaBMError(f"{where}: scale is missing from the option file")
    if dataset["type"] == "SingleImageDataset" and dataset.get("dataroot_gt") is not None:
        raise AdaBMError(
            f"{where}: dataroot_gt: a SingleImageDataset has no ground truth; PairedImageDataset has"
        )
    if dataset.get("meta_info_file") is None:
        dataset.pop("meta_info_file", None)  # BasicSR takes None for a file's name
    given = dataset.get("io_backend") or {}
    backend = {**given, "type": backend_type(where, given)}
    check_keys(
        f"{where}: io_backend",
        backend,
        BACKEND_KEYS if backend["type"] == "lmdb" else BACKEND_KEYS[:1],
    )
    dataset["io_backend"] = backend


def check_metrics(metrics: dict[str, dict], sizes: list[Size]) -> None:
    """Compute each metric on two images of noise, of the smallest size to come, and raise `AdaBMError` if it fails."""
    height, width = (min([TRIED, *sides]) for sides in (zip(*sizes) if sizes else ((), ())))
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    for name, options in metrics.items():
        _check_metric_options(f"val: metrics: {name}", options)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = calculate_metric({"img": noise[0], "img2": noise[1]}, options)
            problem = None if math.isfinite(value) else f"gives {value}"
        except Exception as error:  # whatever its own code raises
            problem = f"fails ({error})"
        if problem:
            given = ", ".join(f"{key} {value!r}" for key, value in options.items() if key != "type")
            raise AdaBMError(
                f"val: metrics: {name}: with {given} it {problem} on an image of {width}x{height} pixels"
            )


def _check_metric_options(where: str, options: dict) -> None:
    """Metrics take any further argument and ignore it, as BasicSR's do: what is like one of their own is a mistake."""
    parameters = inspect.signature(METRIC_REGISTRY.get(options["type"])).parameters
    own = ["type", "better", *(key for key in parameters if key not in ("img", "img2"))]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    check_keys(
        where, [key for key in options if not takes_any or difflib.get_close_matches(key, own)], own
    )
    for key, value in options.items():
        name, usual = f"{where}: {key}", parameters[key].default if key in parameters else None
        if isinstance(usual, bool) and not isinstance(value, bool):
            raise AdaBMError(f"{name}: {value!r} is not true or false")


def check_images(where: str, dataset: dict, scale: int) -> list[Size]:
    """Decode all images of a `PairedImageDataset` or `SingleImageDataset` and pair them as BasicSR does.

    Args:
        where: What to call the dataset in an error.
        dataset: Its options.
        scale: How much larger than LR images the ground truth is.

    Returns:
        Sizes of the images that metrics are computed on.

    Raises:
        AdaBMError: An image is missing, broken or of a kind that BasicSR misreads, or a pair doesn't fit.
    """
    max_pixels = check_max_pixels(f"{where}: max_pixels", dataset.get("max_pixels"))
    names = _names(where, dataset)
    sizes = [_sizes(dataset, key, names[key], max_pixels) for key in names]
    for lq, gt, small, large in zip(*names.values(), *sizes) if len(sizes) == 2 else ():
        if large[0] < scale * small[0] or large[1] < scale * small[1]:
            raise AdaBMError(
                f"{where}: {Path(dataset['dataroot_gt'], gt)} is less than {scale} (scale) times as large as "
                f"{Path(dataset['dataroot_lq'], lq)}"
            )
    return [(height * scale, width * scale) for height, width in sizes[0]]


def _names(where: str, dataset: dict) -> dict[str, list[str]]:
    """Names of the images below each data root, or keys, those of a pair at the same place."""
    roots = {key: Path(dataset[key]) for key in ROOTS[dataset["type"]]}
    if dataset["io_backend"]["type"] == "lmdb":
        return _lmdb_keys(where, roots)
    if "meta_info_file" in dataset:
        names = read_names(dataset["meta_info_file"], list(roots.values())[-1])
    else:
        found = {key: _folder_names(f"{where}: {key}", root) for key, root in roots.items()}
        names = list(found.values())[-1]
        if len(names) != len(found["dataroot_lq"]):
            raise AdaBMError(
                f"{where}: dataroot_lq holds {len(found['dataroot_lq'])} images, dataroot_gt {len(names)}"
            )
    if len(roots) == 1:
        return {"dataroot_lq": names}
    return {"dataroot_lq": [_lq_name(where, dataset, name) for name in names], "dataroot_gt": names}


def _lmdb_keys(where: str, roots: dict[str, Path]) -> dict[str, list[str]]:
    found = {}
    for key, root in roots.items():
        if root.suffix != ".lmdb":
            raise AdaBMError(f"{where}: {key}: {root} must end in .lmdb")
        found[key] = sorted(read_keys(root / LMDB_LIST, root))
    if len({tuple(keys) for keys in found.values()}) > 1:
        raise AdaBMError(f"{where}: the lists of dataroot_lq and dataroot_gt name different images")
    return found


def _folder_names(key: str, folder: Path) -> list[str]:
    paths = list_images(folder, key)
    known = set(
        paths
    )  # BasicSR reads every file of the folder, and fails deep inside at one that isn't an image
    strays = sorted(
        p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p not in known
    )
    if strays:
        raise AdaBMError(f"{key}: {strays[0]} is not an image")
    return [path.name for path in paths]


def _lq_name(where: str, dataset: dict, gt_name: str) -> str:
    path, template = Path(gt_name), dataset.get("filename_tmpl", "{}")
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise AdaBMError(
            f"{where}: filename_tmpl: {template!r} must hold {{}} once, in place of the image's name"
        )
    name = f"{template.format(path.stem)}{path.suffix}"
    check_inside(name, dataset["dataroot_lq"], f"{where}: filename_tmpl")
    return name


def _sizes(dataset: dict, key: str, names: list[str], max_pixels: int) -> list[Size]:
    root = Path(dataset[key])
    if dataset["io_backend"]["type"] == "lmdb":
        with open_lmdb(root) as read:
            return [
                _size(decode_image(read(name), f"{root}:{name}", 3, max_pixels), name)
                for name in names
            ]
    with ThreadPoolExecutor() as pool:
        return list(
            pool.map(lambda name: _size(read_image(root / name, 3, max_pixels), name), names)
        )


def _size(image: np.ndarray, name: str) -> Size:
    if image.dtype == np.float32:
        raise AdaBMError(f"image {name} has float values, which BasicSR doesn't read")
    return image.shape[:2]
