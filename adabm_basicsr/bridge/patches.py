"""Every work-around for the versions of BasicSR, torchvision and torch that users have.

Nothing else is patched. `before_import` runs before the first import of ``basicsr``,
`after_import` right after it. Each function says why it is there, and when it can go.
"""

from __future__ import annotations

import atexit
import importlib.util
import inspect
import logging
import re
import sys
import types
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adabm_basicsr.bridge.processes import init_dist, share_seed
from adabm_basicsr.bridge.resume import load_resume_state

INSTALLED = ("site-packages", "dist-packages")


def before_import() -> None:
    """Make ``import basicsr`` work: torchvision's missing operators and its missing module."""
    _define_torchvision_operators()
    _provide_functional_tensor()


def after_import() -> None:
    """Mend BasicSR 1.4.2 where its released code fails, or knows too little of quantization."""
    import basicsr.models.sr_model
    import basicsr.train
    import basicsr.utils.options

    from adabm_basicsr.data.images import write_image

    _silence_mesh_grids()
    _give_epoch_to_dataset()
    _count_frames_on_any_device()
    _take_clips_of_any_name()
    _provide_deformable_convolution()
    _align_without_cuda()
    _forget_mirrored_clips()
    # BasicSR's own leaves half a picture on a full disk. Can go once it writes to another name
    # first.
    basicsr.models.sr_model.imwrite = write_image
    # BasicSR's own knows NCCL alone. Can go once it takes gloo where there are no GPUs.
    basicsr.utils.options.init_dist = init_dist
    train = basicsr.train
    replaced: dict[str, Callable] = {
        # BasicSR's own calls CUDA on CPU machines, and looks for states below the working
        # directory wherever the experiments are. Can go once it does neither.
        "load_resume_state": load_resume_state,
        "create_train_val_dataloader": _wrap_create_dataloader(train.create_train_val_dataloader),
        "init_wandb_logger": _wrap_init_wandb(train.init_wandb_logger),
    }
    vars(train).update(replaced)
    _replace_parse_options(replaced)


def _define_torchvision_operators() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` where torchvision's CUDA library can't load.

    Importing torchvision beside a CPU torch fails there with "operator torchvision::nms does not
    exist". Can go once torchvision's wheels check for the operators before they register fake
    kernels for them.
    """
    import torch

    if torch.version.cuda is None and "+cu" in _torchvision_version():
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                operators.define(
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        _LASTING.append(operators)


# What must live as long as the process: operators last as long as their library.
_LASTING: list[object] = []


def _torchvision_version() -> str:
    """Version of the installed torchvision, read without importing it; empty if there is none."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return ""
    version_file = Path(spec.submodule_search_locations[0]) / "version.py"
    if not version_file.is_file():
        return ""
    found = re.search(r"__version__ = '(.+?)'", version_file.read_text())
    if found is None:
        return ""
    return found.group(1)


def _provide_functional_tensor() -> None:
    """Stand in for the module ``functional_tensor``, gone since torchvision 0.17.

    BasicSR 1.4.2 imports it. Can go once BasicSR imports ``torchvision.transforms.functional``.
    """
    name = "torchvision.transforms.functional_tensor"
    if importlib.util.find_spec("torchvision") is None:
        return
    if importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module: Any = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = module


def _silence_mesh_grids() -> None:
    """Hide a warning of torch's that BasicSR's ``flow_warp`` brings up in each process.

    It asks for an argument that is to be needed one day. Torch names itself as the place, so that
    the message alone tells it from others. Can go once BasicSR gives ``indexing`` to
    ``torch.meshgrid``.
    """
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")


def _give_epoch_to_dataset() -> None:
    """Let datasets with a method ``epoch_keys`` see the epoch.

    BasicSR gives it to the sampler alone, so augmentation could not depend on (seed, epoch, index).
    Can go once BasicSR passes the epoch on.
    """
    from basicsr.data.data_sampler import EnlargedSampler

    original = EnlargedSampler.__iter__

    def __iter__(self: Any) -> Iterator[int]:  # noqa: N807
        epoch_keys = getattr(self.dataset, "epoch_keys", None)
        if epoch_keys is None:
            return original(self)
        return iter(epoch_keys(self.epoch, self.rank, self.num_replicas))

    EnlargedSampler.__iter__ = __iter__


def _count_frames_on_any_device() -> None:
    """Let BasicSR's video models validate without CUDA, and on several sets one after another.

    They keep the metrics of frames in tensors on the device "cuda", whatever the model's is, and
    those of the first set for all that follow. They make them only where there are none: so they
    are made here, for each set anew. And the recurrent one takes an axis off the clip that it read
    once a copy is on the device, where there is no copy on a CPU: so it gets a view of it. Can go
    once BasicSR makes results on ``self.device``, and keeps what it read as it is.
    """
    from basicsr.models.video_base_model import VideoBaseModel
    from basicsr.models.video_recurrent_model import VideoRecurrentModel

    for model in (VideoBaseModel, VideoRecurrentModel):
        model.dist_validation = _with_results(model.dist_validation)
    feed_data = VideoRecurrentModel.feed_data

    def feed_views(self: Any, data: dict[str, Any]) -> None:
        feed_data(self, data)
        self.lq = self.lq[:]
        if "gt" in data:
            self.gt = self.gt[:]

    VideoRecurrentModel.feed_data = feed_views


def _with_results(dist_validation: Callable) -> Callable:
    def validate(self: Any, dataloader: Any, *args: Any) -> None:
        import torch

        metrics = self.opt["val"]["metrics"]
        if metrics is not None:
            self.metric_results = {}
            for folder, frames in Counter(dataloader.dataset.data_info["folder"]).items():
                results = torch.zeros(frames, len(metrics), device=self.device)
                self.metric_results[folder] = results
        dist_validation(self, dataloader, *args)

    return validate


def _take_clips_of_any_name() -> None:
    """Let video test sets have names of their own.

    BasicSR's take Vid4, REDS4 and REDSofficial alone, though any clips may be laid out like these.
    Can go once BasicSR looks at the folders rather than at the name.
    """
    from basicsr.data.video_test_dataset import VideoTestDataset

    original = VideoTestDataset.__init__

    def __init__(self: Any, opt: dict[str, Any]) -> None:  # noqa: N807
        original(self, {**opt, "name": "REDS4"})
        self.opt = opt

    VideoTestDataset.__init__ = __init__


def _provide_deformable_convolution() -> None:
    """Compute ``torchvision.ops.deform_conv2d`` in torch where torchvision's operators can't load.

    EDVR and its kin call it. Can go once torchvision's wheels hold operators for any torch.
    """
    import torchvision.extension
    import torchvision.ops.deform_conv

    from adabm_basicsr.quantization.layers import deform_conv2d

    if not torchvision.extension._has_ops():
        torchvision.ops.deform_conv2d = deform_conv2d
        torchvision.ops.deform_conv.deform_conv2d = deform_conv2d


def _align_without_cuda() -> None:
    """Let BasicVSR++ be the same network on machines without CUDA.

    BasicSR leaves its deformable alignment out there, and checkpoints with it don't load. For long
    clips it moves features between CPU and GPU. Can go once BasicSR asks where the network is.
    """
    import torch
    from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus, SecondOrderDeformableAlignment

    original = BasicVSRPlusPlus.__init__
    signature = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Deformable alignment module is not added")
            original(self, *args, **kwargs)
        if torch.cuda.is_available():
            return
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        channels = given.arguments["mid_channels"]
        for name in self.backbone:
            self.deform_align[name] = SecondOrderDeformableAlignment(
                2 * channels,
                channels,
                3,
                padding=1,
                deformable_groups=16,
                max_residue_magnitude=given.arguments["max_residue_magnitude"],
            )
        self.is_with_alignment = True
        self.cpu_cache_length = sys.maxsize

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    BasicVSRPlusPlus.__init__ = __init__


def _forget_mirrored_clips() -> None:
    """Let BasicVSR++ look at each clip for itself.

    It takes a clip whose second half mirrors the first, such as one that stands still, for one that
    needs flow in one direction alone. BasicSR then takes every later clip for such a one too, and
    moves its features the wrong way. Can go once BasicSR sets ``is_mirror_extended`` to False
    again.
    """
    from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus

    original = BasicVSRPlusPlus.check_if_mirror_extended

    def check_if_mirror_extended(self: Any, lqs: Any) -> None:
        self.is_mirror_extended = False
        original(self, lqs)

    BasicVSRPlusPlus.check_if_mirror_extended = check_if_mirror_extended


def _wrap_create_dataloader(original: Callable) -> Callable:
    """Give the recipe its say in the data, and the run epochs enough for all iterations.

    BasicSR makes datasets before the model, whichever way it was started. It rounds the iterations
    of an epoch up, while its loader drops the last, incomplete batch, so that training would end
    early without a word. Can go once BasicSR counts the batches of its loader.
    """

    def create_train_val_dataloader(
        opt: dict[str, Any], logger: logging.Logger
    ) -> tuple[Any, Any, Any, int, int]:
        from adabm_basicsr.options.reading import set_recipe_defaults

        set_recipe_defaults(opt)
        loader, sampler, val_loaders, _, iterations = original(opt, logger)
        items_per_process = getattr(sampler.dataset, "items_per_process", None)
        if items_per_process is not None:
            sampler.num_samples = items_per_process(opt["world_size"])  # what `epoch_keys` gives
        batches = max(len(loader), 1)
        epochs = -(-iterations // batches)
        return loader, sampler, val_loaders, epochs, iterations

    return create_train_val_dataloader


def _wrap_init_wandb(original: Callable) -> Callable:
    """Give wandb the function that BasicSR asks for an identifier, which has moved since.

    Can go once BasicSR asks for the new one.
    """

    def init_wandb_logger(opt: dict[str, Any]) -> None:
        import wandb.util
        from wandb.sdk.lib import runid

        if not hasattr(wandb.util, "generate_id"):
            wandb.util.generate_id = runid.generate_id
        original(opt)

    return init_wandb_logger


class _RootedOptions(OrderedDict):
    """Options whose root folder stays what it is, whatever ``train_pipeline`` sets it to."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "root_path":
            value = root_folder(value)
        super().__setitem__(key, value)


def root_folder(root_path: str) -> str:
    """Folder that runs are written below, for the one that BasicSR would take.

    Returns:
        ``root_path``, or the working directory where BasicSR lies in site-packages and would write
        into it.
    """
    if Path(root_path).name in INSTALLED:
        return str(Path.cwd())
    return root_path


def _replace_parse_options(replaced: dict[str, Callable]) -> None:
    """Let BasicSR's own entry points read options as ours do where they would fail.

    They would write into site-packages, draw another seed in each process, ask for ``network_g``
    where the checkpoint holds it, and mix runs of one name. Can go once BasicSR has a folder to
    write to that one run has to itself, one seed, and checkpoints that describe their networks.

    Args:
        replaced: What stands in for functions of the same name in ``basicsr.train``.
    """
    import basicsr.train
    import basicsr.utils.options

    original = basicsr.utils.options.parse_options

    def parse_options(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], Any]:
        from adabm_basicsr.bridge.described import take_network
        from adabm_basicsr.runs.lock import leave_folder, take_folder

        # `python -m basicsr.train` runs a second copy of basicsr.train as __main__, so the
        # caller's own globals count.
        caller = sys._getframe(1).f_globals
        for name, function in replaced.items():
            if name in caller:
                caller[name] = function
        opt, args = original(root_folder(root_path), is_train)
        if not is_train:
            take_network(opt)
        share_seed(opt)
        atexit.register(leave_folder, opt)
        note = take_folder(opt)
        if note:
            print(note)
        return _RootedOptions(opt), args

    basicsr.utils.options.parse_options = parse_options
    for module in (basicsr.train, sys.modules["basicsr.test"], sys.modules.get("__main__")):
        if getattr(module, "parse_options", None) is original:
            vars(module)["parse_options"] = parse_options
