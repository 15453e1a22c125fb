"""From flags and an option file to the options of a run, checked before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adabm_basicsr.bridge.processes import join_processes, seed_processes

DEBUG = "debug"  # what BasicSR looks for in the name of a run


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The flags of BasicSR's ``train.py`` and ``test.py``."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("-opt", type=str, required=True, help="option file (YAML)")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="job launcher",
    )
    parser.add_argument(
        "--auto_resume",
        action="store_true",
        help="continue from the newest training state",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="log, validate and save every few iterations",
    )
    # torchrun of before torch 2.0 passes it.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml",
        nargs="+",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="override options",
    )
    return parser


def parse_options(args: argparse.Namespace, root_path: str | Path, is_train: bool) -> dict:
    """What BasicSR's ``parse_options`` returns, from a file that is checked first.

    Args:
        args: Parsed flags, see `make_parser`.
        root_path: Folder below which ``experiments`` or ``results`` are written.
        is_train: Whether to train.

    Raises:
        AdaBMError: The file is missing, no YAML, or holds a mistake that can be seen before the
            run.
    """
    # These import BasicSR and torch, which flags and --help don't need.
    from adabm_basicsr.bridge.described import take_network
    from adabm_basicsr.bridge.named import check_what_is_named
    from adabm_basicsr.options.reading import check_options
    from adabm_basicsr.options.table import SECTIONS
    from adabm_basicsr.options.yaml_files import apply_override, load_yaml

    opt = load_yaml(args.opt)
    for override in args.force_yml:
        apply_override(opt, override, SECTIONS)
    if not is_train:
        take_network(opt)
    check_options(opt, is_train)
    join_processes(opt, args.launcher)
    check_what_is_named(opt, is_train)
    seed_processes(opt)
    opt["auto_resume"] = args.auto_resume
    opt["is_train"] = is_train
    if args.debug and not opt["name"].startswith(DEBUG):
        opt["name"] = f"{DEBUG}_{opt['name']}"
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    _set_paths(opt, Path(root_path), is_train)
    return opt


def _set_paths(opt: dict[str, Any], root: Path, is_train: bool) -> None:
    """Set the folders that BasicSR makes and writes to."""
    paths = opt["path"]
    if is_train:
        base = root / "experiments" / opt["name"]
        paths["experiments_root"] = str(base)
        paths["models"] = str(base / "models")
        paths["training_states"] = str(base / "training_states")
        if DEBUG in opt["name"]:
            _log_often(opt)
    else:
        base = root / "results" / opt["name"]
        paths["results_root"] = str(base)
    paths["log"] = str(base)
    paths["visualization"] = str(base / "visualization")


def _log_often(opt: dict[str, Any]) -> None:
    """As BasicSR does for a run whose name holds "debug"."""
    if opt.get("val"):
        opt["val"]["val_freq"] = 8
    opt["logger"]["print_freq"] = 1
    opt["logger"]["save_checkpoint_freq"] = 8
