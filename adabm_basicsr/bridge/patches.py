"""Every work-around for the versions of BasicSR, torchvision and torch that users have. Nothing else is patched.

`before_import` runs before the first import of ``basicsr``, `after_import` right after it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import remove_temporaries
from adabm_basicsr.options.reading import set_recipe_defaults

DEFAULT_PORT = 29500  # torch.distributed's


def before_import() -> None:
    """Make ``import basicsr`` work: torchvision's missing operators and its missing module."""
    _define_torchvision_operators()
    _provide_functional_tensor()


def after_import() -> None:
    """Mend BasicSR 1.4.2 where its released code fails.

    Resuming on a CPU, processes without GPUs, pictures on a full disk, the root folder of an installed copy.
    """
    import basicsr.models.sr_model
    import basicsr.train
    import basicsr.utils.options

    from adabm_basicsr.data.images import write_image

    _give_epoch_to_dataset()
    basicsr.models.sr_model.imwrite = (
        write_image  # BasicSR's own leaves half a picture on a full disk
    )
    _REPLACED["create_train_val_dataloader"] = _wrap_create_dataloader(
        basicsr.train.create_train_val_dataloader
    )
    _REPLACED["init_wandb_logger"] = _wrap_init_wandb(basicsr.train.init_wandb_logger)
    vars(basicsr.train).update(_REPLACED)
    basicsr.utils.options.init_dist = init_dist
    original = basicsr.utils.options.parse_options
    parse_options = _wrap_parse_options(original)
    basicsr.utils.options.parse_options = parse_options
    for module in (basicsr.train, sys.modules["basicsr.test"], sys.modules.get("__main__")):
        if getattr(module, "parse_options", None) is original:
            module.parse_options = parse_options


def _define_torchvision_operators() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` where torchvision's CUDA library can't load beside a CPU torch.

    Importing torchvision fails there with "operator torchvision::nms does not exist". Can go once torchvision's wheels
    check for the operators before they register fake kernels for them.
    """
    import torch

    if torch.version.cuda is None and "+cu" in _torchvision_version():
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                operators.define(
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        _define_torchvision_operators.operators = operators  # they last as long as this object


def _torchvision_version() -> str:
    """Version of the installed torchvision, read without importing it; empty if there is none."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return ""
    version_file = Path(spec.submodule_search_locations[0]) / "version.py"
    found = (
        re.search(r"__version__ = '(.+?)'", version_file.read_text())
        if version_file.is_file()
        else None
    )
    return found.group(1) if found else ""


def _provide_functional_tensor() -> None:
    """Stand in for the module ``functional_tensor``, gone since torchvision 0.17, that BasicSR 1.4.2 imports."""
    name = "torchvision.transforms.functional_tensor"
    if (
        importlib.util.find_spec("torchvision") is None
        or importlib.util.find_spec(name) is not None
    ):
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = module


def _give_epoch_to_dataset() -> None:
    """Let datasets with an ``epoch_keys`` method see the epoch.

    BasicSR tells only the sampler, so augmentation could not depend on (seed, epoch, index) alone.
    """
    from basicsr.data.data_sampler import EnlargedSampler

    original = EnlargedSampler.__iter__

    def __iter__(self):
        epoch_keys = getattr(self.dataset, "epoch_keys", None)
        return (
            original(self)
            if epoch_keys is None
            else iter(epoch_keys(self.epoch, self.rank, self.num_replicas))
        )

    EnlargedSampler.__iter__ = __iter__


def load_resume_state(opt: dict) -> dict | None:
    """BasicSR's function of the same name, which works on a CPU and looks below the root folder.

    The released one calls CUDA on CPU machines and searches for states below the working directory, wherever the
    experiments are.

    Returns:
        The newest training state, or None.
    """
    import torch
    from basicsr.utils import check_resume

    from adabm_basicsr.quantization.distributed import from_first
    from adabm_basicsr.runs.training_state import find_state, read_state, resumed_labels

    paths = opt["path"]
    if opt["auto_resume"]:
        found = from_first(find_state(opt))
        paths["resume_state"] = str(found) if found else paths.get("resume_state")
    if not paths.get("resume_state"):
        return None
    path = Path(paths["resume_state"])
    state = read_state(
        path, f"cuda:{torch.cuda.current_device()}" if opt["num_gpu"] != 0 else "cpu"
    )
    check_resume(opt, state["iter"])
    for label in resumed_labels(
        opt
    ):  # they belong together, though the experiment may lie elsewhere by now
        paths[f"pretrain_network_{label}"] = str(
            path.parents[1] / "models" / f"net_{label}_{state['iter']}.pth"
        )
    _continue_experiment(opt, state)
    return state


def _continue_experiment(opt: dict, state: dict) -> None:
    """Take up an earlier run's seed and place in the data, and tidy up after it."""
    from basicsr.utils import set_random_seed

    from adabm_basicsr.models.setup import gpus_per_process

    # BasicSR begins the interrupted epoch anew; the calibration dataset skips what it has given already.
    resume_at = {"epoch": state["epoch"], "iter": state["iter"], "gpus": gpus_per_process(opt)}
    opt["datasets"]["train"]["resume_at"] = resume_at
    opt["manual_seed"] = state.get("manual_seed", opt["manual_seed"])
    set_random_seed(opt["manual_seed"] + opt["rank"])
    if opt["rank"] == 0:
        for folder in (opt["path"]["models"], opt["path"]["training_states"]):
            os.makedirs(folder, exist_ok=True)
            remove_temporaries(folder)


def init_dist(launcher: str, on_gpu: bool | None = None, **params) -> None:
    """BasicSR's function of the same name, which knows NCCL alone: processes without GPUs take gloo.

    Args:
        launcher: ``pytorch`` (torchrun) or ``slurm``.
        on_gpu: Whether the processes use GPUs; by default where there are any.
        **params: ``port``, with slurm.

    Raises:
        AdaBMError: What started the process is another launcher.
    """
    import torch
    import torch.distributed as dist
    from basicsr.utils import dist_util

    needed = {
        "pytorch": ("RANK", "WORLD_SIZE"),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"),
    }[launcher]
    missing = [name for name in needed if name not in os.environ]
    if missing:
        starter = {"pytorch": "torchrun", "slurm": "srun"}[launcher]
        raise AdaBMError(
            f"--launcher {launcher}: {missing[0]} is not set in the environment; start with {starter}"
        )
    if torch.cuda.is_available() if on_gpu is None else on_gpu:
        dist_util.init_dist(launcher, **params)
        return
    if launcher == "slurm":
        _take_over_from_slurm(params.get("port"))
    dist.init_process_group("gloo")


def _take_over_from_slurm(port: int | None) -> None:
    """What torch.distributed reads in the environment, from what Slurm puts there; as BasicSR does for GPUs."""
    hosts = ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]]
    first = subprocess.run(hosts, check=True, capture_output=True, text=True).stdout.split()[0]
    os.environ["MASTER_ADDR"], os.environ["RANK"] = first, os.environ["SLURM_PROCID"]
    os.environ["MASTER_PORT"] = str(port or os.environ.get("MASTER_PORT", DEFAULT_PORT))
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]


def share_seed(opt: dict) -> None:
    """Seed this process from the first one's ``manual_seed``: BasicSR draws another in each where none is given."""
    from basicsr.utils import set_random_seed

    from adabm_basicsr.quantization.distributed import from_first

    opt["manual_seed"] = from_first(opt["manual_seed"])
    set_random_seed(opt["manual_seed"] + opt["rank"])


class _RootedOptions(OrderedDict):
    """Options whose root folder stays the working directory, whatever BasicSR's ``train_pipeline`` sets it to."""

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, root_folder(value) if key == "root_path" else value)


def root_folder(root_path: str) -> str:
    """``root_path``, or the working directory where BasicSR lies in site-packages and would write into it."""
    return os.getcwd() if Path(root_path).name in ("site-packages", "dist-packages") else root_path


def _wrap_create_dataloader(original):
    """The recipe's say in the data, and epochs enough for all iterations.

    BasicSR makes datasets before the model, whichever way it was started. It rounds the iterations of an epoch up,
    while its loader drops the last, incomplete batch, so that training would end early without a word.
    """

    def create_train_val_dataloader(opt: dict, logger):
        set_recipe_defaults(opt)
        loader, sampler, val_loaders, _, total_iters = original(opt, logger)
        items_per_process = getattr(sampler.dataset, "items_per_process", None)
        if items_per_process is not None:
            sampler.num_samples = items_per_process(opt["world_size"])  # what `epoch_keys` gives
        return loader, sampler, val_loaders, -(-total_iters // max(len(loader), 1)), total_iters

    return create_train_val_dataloader


def _wrap_init_wandb(original):
    """BasicSR asks wandb for an identifier by a function that has moved since; can go once it takes the new one."""

    def init_wandb_logger(opt: dict) -> None:
        import wandb.util
        from wandb.sdk.lib import runid

        if not hasattr(wandb.util, "generate_id"):
            wandb.util.generate_id = runid.generate_id
        original(opt)

    return init_wandb_logger


# What stands in for functions of the same name in basicsr.train.
_REPLACED = {"load_resume_state": load_resume_state}


def _wrap_parse_options(original):
    def parse_options(root_path: str, is_train: bool = True):
        # `python -m basicsr.train` runs a second copy of basicsr.train as __main__, so the caller's own globals count.
        caller = sys._getframe(1).f_globals
        caller.update({name: function for name, function in _REPLACED.items() if name in caller})
        opt, args = original(root_folder(root_path), is_train)
        share_seed(opt)
        return _RootedOptions(opt), args

    return parse_options
