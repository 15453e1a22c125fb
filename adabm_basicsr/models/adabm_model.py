"""``AdaBMModel``: calibration, fine-tuning and validation under BasicSR's training loop."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.utils.data import DataLoader

from adabm_basicsr.environment import most_memory
from adabm_basicsr.errors import AdaBMError, CheckpointError, OptionError, counted
from adabm_basicsr.metrics.choice import split_metrics
from adabm_basicsr.models.course import check_course, own_random_state, write_state
from adabm_basicsr.models.phases import Phases
from adabm_basicsr.models.setup import TrainingSetup, gpus_per_process, read_pairs, set_up_training
from adabm_basicsr.models.tensorboard import TrainingBits, current_writer, layer_bits
from adabm_basicsr.models.validation import log_costs, note_set
from adabm_basicsr.quantization.calibration.calibrate import calibrate, representative
from adabm_basicsr.quantization.checkpoint import (
    load_checkpoint,
    read_description,
    save_checkpoint,
)
from adabm_basicsr.quantization.checks import CLIP_AXES, check_finite
from adabm_basicsr.quantization.distributed import own_share, wait_for_all, weighted_mean
from adabm_basicsr.quantization.finetuning.best_state import PATCHES
from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.quantization.measures.coverage import measure_coverage
from adabm_basicsr.quantization.measures.memory import estimate_bytes, pixels_of
from adabm_basicsr.quantization.measures.summary import summarize
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.progress import tracked
from adabm_basicsr.quantization.structure.clips import few_frames, naming_least
from adabm_basicsr.quantization.structure.sizes import find_size_multiple, run_padded
from adabm_basicsr.quantization.user_code import users_code
from adabm_basicsr.runs.facts import describe_network, describe_result
from adabm_basicsr.runs.frames import (
    FrameMetrics,
    find_place,
    gives_clips,
    judged_figures,
    judged_frames,
    save_frames,
    unit_of,
)
from adabm_basicsr.runs.observations import Observations
from adabm_basicsr.runs.pictures import PictureStore
from adabm_basicsr.runs.record import RunRecord
from adabm_basicsr.runs.training_state import random_state, set_random_state
from adabm_basicsr.terminal import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GB = 1e9
EASY_PIXELS = 128**2  # of an image that any network has memory for
LAST = -1  # what BasicSR calls the iteration of the end


@MODEL_REGISTRY.register()
class AdaBMModel(SRModel):
    """Quantizes ``network_g`` in training; tests any network.

    FAB, BitOPs and size stand beside BasicSR's metrics.

    Args:
        opt: BasicSR's options. Those under ``train`` are of `options.table.Train`.

    Raises:
        OptionError: An option is unknown, out of range, or asks for a GPU that isn't there.
    """

    observed: Observations  # of the validation set at work

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise OptionError(
                f"num_gpu: {opt['num_gpu']}, but there is no CUDA device; set num_gpu: 0 (or auto)"
            )
        wait_for_all()  # the first process makes the folders that the others may write to
        self.record = RunRecord(opt)
        self.made_with: str | None = None  # recipe of the checkpoint
        super().__init__(opt)
        facts = describe_network(self.bare_network, opt["network_g"])
        if self.made_with:
            facts["recipe"] = self.made_with
        self.record.note(**facts)
        self._log_coverage()
        self.image_name = ""
        self.size_multiple: int | None = None
        self.checked_pixels = EASY_PIXELS  # of the largest image that there is memory for

    @property
    def bare_network(self) -> nn.Module:
        """``net_g`` without a wrapper for several GPUs."""
        return self.get_bare_model(self.net_g)

    @property
    def quantized_network(self) -> QuantizedNetwork:
        """The same in training, which begins with a quantized network alone."""
        return self.get_bare_model(self.net_g)

    def _log_coverage(self) -> None:
        """Log what is quantized and what isn't; what should be and isn't is a warning."""
        net = self.bare_network
        if not isinstance(net, QuantizedNetwork):
            return
        coverage = measure_coverage(net)
        get_root_logger().info(f"Coverage:\n{coverage}")
        warning = coverage.warning()
        if warning:
            get_root_logger().warning(warning)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device, and to several GPUs.

        No DDP, which can't follow what is trained from epoch to epoch (see `Finetuner`).
        """
        net = net.to(self.device)
        gpus = gpus_per_process(self.opt)
        if gpus > 1:
            return nn.DataParallel(net, list(range(gpus)))
        return net

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = None
    ) -> None:
        """Load a plain or quantized checkpoint; which of them it is, its content says."""
        get_root_logger().info(f"Loading {load_path}")
        net = load_checkpoint(self.get_bare_model(net), load_path, param_key)
        if not self.is_train and isinstance(net, QuantizedNetwork):
            self._note_recipe(load_path, net.config.recipe)

    def _note_recipe(self, path: str, asked: str) -> None:
        """Networks of some recipes look alike; a checkpoint says which of them made it."""
        description = read_description(path) or {}
        options = description.get("options") or {}
        self.made_with = options.get("recipe", asked)
        if self.made_with != asked:
            get_root_logger().warning(
                f"network_g: recipe: {asked}, but {path} was made with {self.made_with}"
            )

    def init_training_settings(self) -> None:
        """Calibrate, unless a quantized checkpoint was loaded, and set up fine-tuning."""
        setup = set_up_training(self.opt, self.bare_network)
        net = self.quantized_network
        if self.opt["auto_resume"] and not self.opt["path"].get("resume_state"):
            say(
                f"--auto_resume: {self.opt['path']['training_states']} holds no training state; "
                "the run begins anew"
            )
        seconds = None
        if net.reached == Stage.FRESH:
            batches = setup.dataset.calibration_batches(setup.calibration_batch_size)
            seconds = self._calibrate(net, batches)
        self.patches = [patch.to(self.device) for patch in setup.dataset.calibration_batches(1)]
        self._set_up_finetuning(net, setup)
        if seconds is not None:
            self.phases.note_calibration(seconds, self.net_g)
            if self.opt["train"]["total_iter"]:
                self.save(epoch=0, current_iter=0)  # an interrupted run isn't calibrated again

    def _calibrate(self, net: QuantizedNetwork, batches: list[torch.Tensor]) -> float:
        """Calibrate, log a table of the layers, and return the seconds that it took."""
        start = time.perf_counter()
        batches = [batch.to(self.device) for batch in batches]
        pairs = []
        if "psnr_drop" in net.config.target:
            pairs = read_pairs(self.opt["datasets"], self.device)
        calibrate(net, tracked(batches, "Calibration"), pairs)
        seconds = time.perf_counter() - start
        if net.kept is not None:
            self.record.note(kept=asdict(net.kept))
            say(str(net.kept))
        if self.opt["rank"] == 0:
            count = sum(len(batch) for batch in batches)
            get_root_logger().info(f"Calibrated on {count} patches:\n{summarize(net, batches[0])}")
        return seconds

    def _set_up_finetuning(self, net: QuantizedNetwork, setup: TrainingSetup) -> None:
        total = self.opt["train"]["total_iter"]
        self.tuner = Finetuner(net, setup.finetune, setup.iterations_per_epoch, total)
        self.optimizers = self.tuner.optimizers
        self.iteration = 1
        # Losses stay on the device until they are asked for.
        self.log_dict: OrderedDict[str, torch.Tensor | int] = OrderedDict()
        # What must be the same in a run that goes on from this one.
        self.course = {
            "iterations_per_epoch": setup.iterations_per_epoch,
            "phases": self.tuner.phases,
        }
        self.random_state: dict[str, Any] | None = None
        # Whether gradients go through the network; None before the first batch.
        self.can_train: bool | None = None
        self.phases = Phases(self.tuner, total, representative(self.patches, PATCHES), self.record)
        # What TensorBoard shows beside validation.
        self.bits_log: TrainingBits | None = None
        writer = current_writer()
        if writer:
            name = self.opt["datasets"]["train"]["name"]
            self.bits_log = TrainingBits(writer, net, name, self.patches, setup.dataset)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Learning rates follow from the iteration alone; `Finetuner` sets them."""
        self.iteration = current_iter

    def get_current_learning_rate(self) -> list[float]:
        """Learning rates of the phase at work."""
        optimizer = self.tuner.optimizer(self.iteration)
        return [group["lr"] for group in optimizer.param_groups]

    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch; patches that come back in later epochs have keys."""
        super().feed_data(data)
        if "lq_path" in data:
            self.image_name = Path(data["lq_path"][0]).stem
        self.patch_keys: list[int] | None = None
        if self.is_train and "patch_key" in data:
            self.patch_keys = data["patch_key"].tolist()

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration of fine-tuning on ``self.lq``; nothing where gradients don't reach it."""
        if self.can_train is None:
            self.can_train = self.tuner.can_train(self.lq)
        if not self.can_train:
            return
        if self.random_state is not None:
            # As it was saved, whatever loaders have drawn since.
            set_random_state(self.random_state)
            self.random_state = None
        self.phases.before_iteration(current_iter, self.lq, self.net_g)
        if (current_iter - 1) % self.tuner.iterations_per_epoch == 0:
            self._log_bits(current_iter)
        losses = self.tuner.step(self.lq, current_iter, self.net_g, self.patch_keys)
        self.log_dict = OrderedDict(losses)
        self.log_dict["phase"] = self.tuner.phase_index(current_iter)
        self.phases.after_iteration(current_iter, self.net_g)
        if current_iter == self.opt["train"]["total_iter"]:
            self.tuner.teacher.forget()

    def get_current_log(self) -> OrderedDict[str, float]:
        """Losses of the last iteration, of all processes together."""
        return OrderedDict((name, float(value)) for name, value in self.log_dict.items())

    def _log_bits(self, iteration: int) -> None:
        """Log the bits of layers as an epoch begins."""
        bits = layer_bits(self.quantized_network)
        listed = ", ".join(f"{name} {of_layer:.0f}" for name, of_layer in bits.items())
        phase = self.phases.name(iteration)
        get_root_logger().info(
            f"Fine-tuning {phase} from iteration {iteration}; bits of layers: {listed}"
        )
        if self.bits_log:
            self.bits_log.write(iteration - 1)

    def save(self, epoch: int, current_iter: int) -> None:
        """Save network and training state; the last time also note what quantization came to."""
        super().save(epoch, current_iter)
        if current_iter == LAST:
            self._note_result()

    def _note_result(self) -> None:
        PictureStore(self.record.folder).clear()  # of the run before it was resumed
        net = self.quantized_network
        summary = summarize(net, self.phases.patches)
        count = len(self.phases.patches)
        get_root_logger().info(f"Quantized network, on {count} calibration patches:\n{summary}")
        self.record.note(**describe_result(net, summary, self.patches))
        if self.bits_log:
            self.bits_log.write(self.opt["train"]["total_iter"])

    def test(self) -> None:
        """Super-resolve ``self.lq``, in tiles if ``val: tile`` asks for them, and note its cost."""
        check_finite(self.lq, "an image")
        net = self.bare_network
        net.eval()
        self._size_multiple(net)  # tried once, and no cost of the image
        self._check_memory()
        with torch.no_grad():
            self.output = self.observed.upscale(self.lq)
            self._check_scale()
            self.observed.note(self.image_name, self.lq, self.output)

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        net = self.bare_network
        multiple = self._size_multiple(net)
        name = type(net).__name__
        run = partial(run_padded, net, multiple=multiple)
        with (
            naming_least(name, run, image),
            users_code(net, f"{name} cannot be run on {self._described(image)}"),
        ):
            return run(image)

    def _described(self, image: torch.Tensor) -> str:
        """What messages call the image or clip at work."""
        kind = "clip" if image.dim() == CLIP_AXES else "image"
        return f"{kind} {self.image_name}"

    def _check_memory(self) -> None:
        """Reject what the network has not enough memory for, before the system ends us."""
        pixels = pixels_of(self.lq[0])
        if self.opt["val"].get("tile") or self.lq.is_cuda or pixels <= self.checked_pixels:
            return
        self.checked_pixels = pixels
        most = most_memory()
        if most is None:
            return
        try:
            needed = estimate_bytes(self._forward, self.lq)
        except AdaBMError:
            # It takes no images as small as those that are tried.
            return
        if needed > most:
            height, width = self.lq.shape[-2:]
            where = "val: tile"
            advice = "set a tile, such as 128"
            size = f"{width}x{height} pixels"
            if self.lq.dim() == CLIP_AXES:
                where = "datasets: dataroot_lq"
                advice = "validate on shorter clips"
                size = f"{counted(self.lq.shape[1], 'frames')} of {size}"
            raise OptionError(
                f"{where}: the network takes about {needed / GB:.1f} GB for "
                f"{self._described(self.lq)} of {size}, and there are {most / GB:.1f} GB; {advice}"
            )

    def _check_scale(self) -> None:
        """BasicSR cuts the ground truth to ``scale`` times the input.

        A network of another scale doesn't fit it.
        """
        made = self.output.shape[-2:]
        truth = getattr(self, "gt", self.output).shape[-2:]
        if made != truth:
            sizes = [f"{width}x{height}" for height, width in (self.lq.shape[-2:], made, truth)]
            raise OptionError(
                f"scale: {self.opt['scale']}: the network makes {sizes[1]} pixels of {sizes[0]}, "
                f"but there are {sizes[2]} of ground truth"
            )

    def _size_multiple(self, net: nn.Module) -> int:
        """What sizes the network takes are multiples of.

        Of a plain network too, so that full precision is measured on the same images as a quantized
        network.
        """
        if self.size_multiple is None:
            self.size_multiple = getattr(net, "size_multiple", None)
        if not self.size_multiple:
            self.size_multiple = find_size_multiple(net, few_frames(self.lq))
        return self.size_multiple

    def validation(
        self,
        dataloader: DataLoader,
        current_iter: int,
        tb_logger: SummaryWriter | None,
        save_img: bool = False,
    ) -> None:
        """BasicSR's last one comes after it has counted an iteration that isn't run."""
        if self.is_train:
            current_iter = min(current_iter, self.opt["train"]["total_iter"])
        super().validation(dataloader, current_iter, tb_logger, save_img)

    def dist_validation(
        self,
        dataloader: DataLoader,
        current_iter: int,
        tb_logger: SummaryWriter | None,
        save_img: bool,
    ) -> None:
        """Each process takes its share of the images; BasicSR leaves them all to the first."""
        dataset: Any = dataloader.dataset
        indices = range(len(dataset))
        share = own_share(indices)
        own: DataLoader = DataLoader(dataset, sampler=share)
        is_only_copy = len(share) < len(indices) or self.opt["rank"] == 0
        self.nondist_validation(own, current_iter, tb_logger, save_img and is_only_copy)

    def _update_best_metric_result(
        self, dataset_name: str, metric: str, val: float, current_iter: int
    ) -> None:
        """BasicSR gives the mean over this process's images; what counts is that over all."""
        mean = weighted_mean(val, len(self.observed.images))
        self.metric_results[metric] = mean
        super()._update_best_metric_result(dataset_name, metric, mean, current_iter)

    def nondist_validation(
        self,
        dataloader: DataLoader,
        current_iter: int,
        tb_logger: SummaryWriter | None,
        save_img: bool,
    ) -> None:
        """BasicSR's validation, with FAB, BitOPs, size and self-PSNR as further metrics."""
        options = self.opt["val"]
        asked = options.get("metrics")
        dataset: Any = dataloader.dataset
        name = dataset.opt["name"]
        judged, self_psnr = split_metrics(asked or {}, "dataroot_gt" in dataset.opt)
        options["metrics"] = judged if asked else None
        if hasattr(self, "metric_results"):
            del self.metric_results  # BasicSR keeps the names of the first set's metrics
        start = time.perf_counter()
        count = len(dataloader)
        net = self.bare_network
        observed = Observations(net, name, count, self._forward, options, self_psnr)
        self.observed = observed
        by_frame: dict[str, list[float]] = {}
        with observed:
            if gives_clips(dataset):
                by_frame = self._validate_clips(dataloader, current_iter, tb_logger, save_img)
            else:
                super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        observed.gather(len(dataset))
        costs = observed.means()
        metrics = {}
        if asked:
            metrics.update(self.metric_results)
        metrics.update(costs)
        log_costs(name, costs, observed, tb_logger, current_iter)
        seconds = time.perf_counter() - start
        note_set(name, metrics, observed, unit_of(dataset), seconds, self.record, by_frame)
        options["metrics"] = asked

    def _validate_clips(
        self,
        dataloader: DataLoader,
        current_iter: int,
        tb_logger: SummaryWriter | None,
        save_img: bool,
    ) -> dict[str, list[float]]:
        """Validate on clips, of which BasicSR has a model for windows and one for whole clips.

        Returns:
            Metrics and bits of the first, second, ... frames, means over all clips.
        """
        options = self.opt["val"]
        if options.get("tile"):
            raise OptionError("val: tile: clips are validated whole; leave tile out")
        dataset: Any = dataloader.dataset
        name = dataset.opt["name"]
        suffix = options["suffix"] or self.opt["name"]
        if self.is_train:
            suffix = str(current_iter)
        judged = FrameMetrics(options["metrics"] or {})
        for item in dataloader:
            place = find_place(dataset, item)
            self.feed_data(item)
            self.image_name = place.name
            self.test()
            frames = judged_frames(self.output, self.gt)
            figures = judged_figures(self.observed.of_frames, len(frames))
            judged.note(place, frames, self.gt, figures)
            if save_img:
                folder = Path(self.opt["path"]["visualization"], name)
                save_frames(frames, place, folder, suffix)
            # Whole clips of ground truth take much memory.
            del self.lq, self.gt, self.output
        judged.gather()
        if not judged.metrics:
            return judged.all_by_frame()
        self.metric_results: dict[str, float] = {}
        self._initialize_best_metric_results(name)
        for metric in judged.metrics:
            mean_of_clips = mean(judged.of_clips(metric).values())
            self._update_best_metric_result(name, metric, mean_of_clips, current_iter)
        self._log_validation_metric_values(current_iter, name, tb_logger)
        judged.log(name)
        return judged.all_by_frame()

    @master_only
    def save_network(
        self, net: nn.Module, net_label: str, current_iter: int, param_key: str = "params"
    ) -> None:
        """Save atomically; a write error stops the run (BasicSR only warns)."""
        iteration = "latest" if current_iter == LAST else str(current_iter)
        path = Path(self.opt["path"]["models"], f"{net_label}_{iteration}.pth")
        save_checkpoint(self.get_bare_model(net), path)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save what `resume_training` needs, atomically.

        A write error stops the run (BasicSR only warns). The network is saved before it: a state
        without its network isn't resumed from.
        """
        if current_iter == LAST:
            return
        self.random_state = random_state()
        write_state(
            self.opt,
            epoch,
            current_iter,
            self.course,
            self.optimizers,
            self.tuner.best,
            self.random_state,
        )

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Take up optimizers, random states and the place in the course of training.

        Raises:
            AdaBMError: The state is of a run with other options.
        """
        check_course(self.course, resume_state)
        try:
            super().resume_training(resume_state)
        except (AssertionError, ValueError) as error:
            raise CheckpointError(
                f"cannot resume: the training state doesn't fit the options: {error}"
            ) from error
        if self.tuner.best is not None and "best" in resume_state:
            self.tuner.best.load_state_dict(resume_state["best"])
        self.record.forget_phases_after(resume_state["iter"])
        self.random_state = own_random_state(self.opt, resume_state)
