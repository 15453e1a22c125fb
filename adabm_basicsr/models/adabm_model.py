"""``AdaBMModel``: calibration, clipping, fine-tuning and validation under BasicSR's training loop."""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from pathlib import Path

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.utils.data import DataLoader

from adabm_basicsr.data.calibration_dataset import CalibrationDataset
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.metrics.choice import split_metrics
from adabm_basicsr.models.phases import Phases
from adabm_basicsr.models.setup import TrainingSetup, gpus_per_process, set_up_training
from adabm_basicsr.models.tensorboard import (
    TrainingBits,
    current_writer,
    layer_bits,
    log_image_bits,
)
from adabm_basicsr.quantization.calibration.calibrate import calibrate, representative
from adabm_basicsr.quantization.checkpoint import (
    load_checkpoint,
    read_description,
    save_checkpoint,
    save_tensors,
)
from adabm_basicsr.quantization.checks import check_finite
from adabm_basicsr.quantization.distributed import (
    gather_objects,
    own_share,
    wait_for_all,
    weighted_mean,
)
from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.quantization.measures.coverage import measure_coverage
from adabm_basicsr.quantization.measures.summary import summarize
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.progress import tracked
from adabm_basicsr.quantization.structure.sizes import find_size_multiple, run_padded
from adabm_basicsr.report.figures import own_variant
from adabm_basicsr.report.formats import format_figure
from adabm_basicsr.runs.facts import describe_network, describe_result
from adabm_basicsr.runs.observations import Observations
from adabm_basicsr.runs.pictures import LOW, PictureStore, to_pixels
from adabm_basicsr.runs.record import RunRecord, write_json
from adabm_basicsr.runs.training_state import SUFFIX, random_state, set_random_state
from adabm_basicsr.terminal import say

PROBED = 4  # patches that losses before and after each phase are measured on, and layers in the end


@MODEL_REGISTRY.register()
class AdaBMModel(SRModel):
    """Quantizes ``network_g`` in training; tests any network with FAB, BitOPs and size beside BasicSR's metrics.

    Args:
        opt: BasicSR's options. Under ``train``: ``total_iter``; ``calibration_batch_size`` (16); ``finetune`` with the
            fields of `FinetuneSettings`; ``pbar``, whether to show progress bars (`run_pipeline` sees to it).

    Raises:
        AdaBMError: An option is unknown, out of range, or asks for a GPU that isn't there.
    """

    def __init__(self, opt: dict) -> None:
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise AdaBMError(
                f"num_gpu: {opt['num_gpu']}, but there is no CUDA device; set num_gpu: 0 (or auto)"
            )
        wait_for_all()  # the first process makes the folders that the others may write to
        self.record = RunRecord(opt)
        self.made_with: str | None = None
        super().__init__(opt)
        facts = describe_network(self.get_bare_model(self.net_g), opt["network_g"])
        self.record.note(**{**facts, "recipe": self.made_with or facts["recipe"]})
        self._tell_coverage()
        self.observed: Observations | None = None
        self.image_name = ""
        self.size_multiple: int | None = None

    def _tell_coverage(self) -> None:
        """Log what is quantized and what isn't; what should be and isn't is a warning."""
        net = self.get_bare_model(self.net_g)
        if not isinstance(net, QuantizedNetwork):
            return
        coverage = measure_coverage(net)
        get_root_logger().info(f"Coverage:\n{coverage}")
        if warning := coverage.warning():
            get_root_logger().warning(warning)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move to the device; no DDP, which can't follow what is trained from epoch to epoch (see `Finetuner`)."""
        net = net.to(self.device)
        gpus = gpus_per_process(self.opt)
        return nn.DataParallel(net, list(range(gpus))) if gpus > 1 else net

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = None
    ) -> None:
        """Load a plain or quantized checkpoint, told apart by content; see `load_checkpoint`."""
        get_root_logger().info(f"Loading {load_path}")
        net = load_checkpoint(self.get_bare_model(net), load_path, param_key)
        if not self.is_train and isinstance(net, QuantizedNetwork):
            self._note_recipe(load_path, net.config.recipe)

    def _note_recipe(self, path: str, asked: str) -> None:
        """Networks of some recipes look alike; which one made a checkpoint, it says itself."""
        self.made_with = ((read_description(path) or {}).get("options") or {}).get("recipe", asked)
        if self.made_with != asked:
            get_root_logger().warning(
                f"network_g: recipe: {asked}, but {path} was made with {self.made_with}"
            )

    def init_training_settings(self) -> None:
        """Calibrate, unless a quantized checkpoint was loaded, and set up fine-tuning."""
        net, setup = (
            self.get_bare_model(self.net_g),
            set_up_training(self.opt, self.get_bare_model(self.net_g)),
        )
        if self.opt["auto_resume"] and not self.opt["path"].get("resume_state"):
            say(
                f"--auto_resume: {self.opt['path']['training_states']} holds no training state; the run begins anew"
            )
        is_fresh = net.stage == Stage.FRESH
        if is_fresh:
            seconds = self._calibrate(
                net, setup.dataset.calibration_batches(setup.calibration_batch_size)
            )
        self.patches = [patch.to(self.device) for patch in setup.dataset.calibration_batches(1)]
        self._set_up_finetuning(net, setup)
        self.bits_log = self._open_bits_log(net, setup.dataset)
        if is_fresh:
            self.phases.note_calibration(seconds, self.net_g)
            if self.opt["train"]["total_iter"]:
                self.save(epoch=0, current_iter=0)  # an interrupted run isn't calibrated again

    def _calibrate(self, net: QuantizedNetwork, batches: list[torch.Tensor]) -> float:
        """Calibrate, log a table of the layers, and return the seconds that it took."""
        start, batches = time.perf_counter(), [batch.to(self.device) for batch in batches]
        calibrate(net, tracked(batches, "Calibration"))
        seconds = time.perf_counter() - start
        if self.opt["rank"] == 0:
            get_root_logger().info(
                f"Calibrated on {sum(map(len, batches))} images:\n{summarize(net, batches[0])}"
            )
        return seconds

    def _open_bits_log(
        self, net: QuantizedNetwork, dataset: CalibrationDataset
    ) -> TrainingBits | None:
        """What TensorBoard is told beside validation; None where BasicSR has no writer for it."""
        writer, name = current_writer(), self.opt["datasets"]["train"]["name"]
        return TrainingBits(writer, net, name, self.patches, dataset) if writer else None

    def _set_up_finetuning(self, net: QuantizedNetwork, setup: TrainingSetup) -> None:
        total = self.opt["train"]["total_iter"]
        self.tuner = Finetuner(net, setup.finetune, setup.iterations_per_epoch, total)
        self.optimizers, self.iteration, self.log_dict = self.tuner.optimizers, 1, OrderedDict()
        self.course = {
            "iterations_per_epoch": setup.iterations_per_epoch,
            "phases": self.tuner.phases,
        }
        self.random_state: dict | None = None
        self.phases = Phases(self.tuner, total, representative(self.patches, PROBED), self.record)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Learning rates follow from the iteration alone; `Finetuner` sets them."""
        self.iteration = current_iter

    def get_current_learning_rate(self) -> list[float]:
        """Learning rates of the phase at work."""
        return [group["lr"] for group in self.tuner.optimizer(self.iteration).param_groups]

    def feed_data(self, data: dict) -> None:
        """Take a batch; patches that come back in later epochs have keys."""
        super().feed_data(data)
        self.image_name = Path(data["lq_path"][0]).stem
        fixed = self.is_train and "patch_key" in data
        self.patch_keys = data["patch_key"].tolist() if fixed else None

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of fine-tuning on ``self.lq``."""
        if self.random_state is not None:
            set_random_state(
                self.random_state
            )  # as it was saved, whatever loaders have drawn since
            self.random_state = None
        self.phases.before_step(current_iter, self.lq, self.net_g)
        if (current_iter - 1) % self.tuner.iterations_per_epoch == 0:
            self._log_bits(current_iter)
        losses = self.tuner.step(self.lq, current_iter, self.net_g, self.patch_keys)
        self.log_dict = self.reduce_loss_dict(OrderedDict(losses))
        self.log_dict["phase"] = float(self.tuner.phase_index(current_iter))
        self.phases.after_step(current_iter, self.net_g)
        if current_iter == self.opt["train"]["total_iter"]:
            self.tuner.teacher.forget()

    def _log_bits(self, iteration: int) -> None:
        """Log the bits of layers as an epoch begins."""
        bits = layer_bits(self.get_bare_model(self.net_g))
        told = ", ".join(f"{name} {of_layer:.0f}" for name, of_layer in bits.items())
        phase = self.phases.name(iteration)
        get_root_logger().info(
            f"Fine-tuning {phase} from iteration {iteration}; bits of layers: {told}"
        )
        if self.bits_log:
            self.bits_log.write(iteration - 1)

    def save(self, epoch: int, current_iter: int) -> None:
        """Save network and training state; the last time, -1, also note what quantization came to."""
        super().save(epoch, current_iter)
        if current_iter == -1:
            PictureStore(self.record.folder).clear()  # of the run before it was resumed
            net = self.get_bare_model(self.net_g)
            summary = summarize(net, self.phases.patches)
            get_root_logger().info(
                f"Quantized network, on {len(self.phases.patches)} calibration patches:\n{summary}"
            )
            self.record.note(**describe_result(net, summary, self.patches))
            if self.bits_log:
                self.bits_log.write(self.opt["train"]["total_iter"])

    def test(self) -> None:
        """Super-resolve ``self.lq``, in tiles if ``val: tile`` asks for them, and note what it cost."""
        check_finite(self.lq, "an image")
        self.get_bare_model(self.net_g).eval()
        self._size_multiple(self.get_bare_model(self.net_g))  # tried once, and no cost of the image
        with torch.no_grad():
            self.output = self.observed.upscale(self.lq)
            self._check_scale()
            self.observed.note(self.image_name, self.lq, self.output)

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        net = self.get_bare_model(self.net_g)
        return run_padded(net, image, self._size_multiple(net))

    def _check_scale(self) -> None:
        """BasicSR cuts the ground truth to ``scale`` times the input; a network of another scale doesn't fit it."""
        made, truth = self.output.shape[2:], getattr(self, "gt", self.output).shape[2:]
        if made != truth:
            sizes = [f"{width}x{height}" for height, width in (self.lq.shape[2:], made, truth)]
            raise AdaBMError(
                f"scale: {self.opt['scale']}: the network makes {sizes[1]} pixels of {sizes[0]}, but there are "
                f"{sizes[2]} of ground truth"
            )

    def _size_multiple(self, net: nn.Module) -> int:
        """Of a plain network too, so that full precision is measured on the same images as a quantized network."""
        if self.size_multiple is None:
            self.size_multiple = getattr(net, "size_multiple", None) or find_size_multiple(
                net, self.lq
            )
        return self.size_multiple

    def validation(self, dataloader, current_iter, tb_logger, save_img=False) -> None:
        """BasicSR's last one comes after it has counted an iteration that isn't run."""
        if self.is_train:
            current_iter = min(current_iter, self.opt["train"]["total_iter"])
        super().validation(dataloader, current_iter, tb_logger, save_img)

    def dist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """Each process takes its share of the images; BasicSR leaves them all to the first."""
        indices = range(len(dataloader.dataset))
        share = own_share(indices)
        own = DataLoader(dataloader.dataset, sampler=share)
        is_only_copy = len(share) < len(indices) or self.opt["rank"] == 0
        self.nondist_validation(own, current_iter, tb_logger, save_img and is_only_copy)

    def _update_best_metric_result(
        self, dataset_name: str, metric: str, val: float, current_iter
    ) -> None:
        """BasicSR gives the mean over this process's images; what counts is that over all."""
        self.metric_results[metric] = weighted_mean(val, len(self.observed.images))
        super()._update_best_metric_result(
            dataset_name, metric, self.metric_results[metric], current_iter
        )

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """BasicSR's validation, with FAB, BitOPs, size and self-PSNR as further metrics."""
        asked, name = self.opt["val"].get("metrics"), dataloader.dataset.opt["name"]
        judged, self_psnr = split_metrics(asked or {}, "dataroot_gt" in dataloader.dataset.opt)
        self.opt["val"]["metrics"] = judged if asked else None
        vars(self).pop(
            "metric_results", None
        )  # BasicSR keeps the names of the first validation set's metrics
        start = time.perf_counter()
        net = self.get_bare_model(self.net_g)
        observed = Observations(
            net, name, len(dataloader), self._forward, self.opt["val"], self_psnr
        )
        with observed as self.observed:
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        self.observed.gather(len(dataloader.dataset))
        results, means = dict(self.metric_results) if asked else {}, self.observed.means()
        self._log_costs(name, means, tb_logger, current_iter)
        self._note_set(name, {**results, **means}, time.perf_counter() - start)
        self.opt["val"]["metrics"] = asked

    def _log_costs(self, dataset: str, costs: dict[str, float], tb_logger, current_iter) -> None:
        shown = {"bitops": "{:.4e}", "weight_bytes": "{}"}
        lines = [
            f"\t # {name}: {shown.get(name, '{:.4f}').format(value)}"
            for name, value in costs.items()
        ]
        get_root_logger().info("\n".join([f"Validation {dataset}", *lines]) + "\n")
        if tb_logger:
            for metric, value in costs.items():
                tb_logger.add_scalar(f"metrics/{dataset}/{metric}", value, current_iter)
            bits = [row["bits"] for row in self.observed.images]
            log_image_bits(tb_logger, dataset, bits, self.observed.bit_map(), current_iter)

    @master_only
    def _note_set(self, dataset: str, metrics: dict[str, float], seconds: float) -> None:
        facts = {"metrics": metrics, **self.observed.facts(), "seconds": seconds}
        self.record.note(sets={**self.record.facts["sets"], dataset: facts})
        self._keep_largest(dataset)
        self._write_metrics(dataset, metrics)
        told = ", ".join(f"{name} {format_figure(name, value)}" for name, value in metrics.items())
        say(f"Validation {dataset}: {len(self.observed.images)} images, {seconds:.1f} s, {told}")

    def _keep_largest(self, dataset: str) -> None:
        """Keep the picture that the report lays the bits of its tiles over."""
        store, (image, low, output) = PictureStore(self.record.folder), self.observed.largest
        store.keep(dataset, LOW, image, to_pixels(low))
        store.keep(dataset, own_variant(self.record.facts), image, to_pixels(output))

    def _write_metrics(self, dataset: str, metrics: dict[str, float]) -> None:
        """Keep the latest figures of every validation set in ``metrics.json`` beside the log."""
        path = Path(self.opt["path"]["log"]) / "metrics.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, {**kept, dataset: metrics})

    @master_only
    def save_network(
        self, net: nn.Module, net_label: str, current_iter: int, param_key: str = "params"
    ) -> None:
        """Save atomically; a write error stops the run (BasicSR only warns)."""
        name = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
        save_checkpoint(self.get_bare_model(net), os.path.join(self.opt["path"]["models"], name))

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save what `resume_training` needs, atomically; a write error stops the run (BasicSR only warns).

        The network is saved before it: a state without its network isn't resumed from.
        """
        if current_iter == -1:
            return
        self.random_state = random_state()
        state = {
            **{
                "epoch": epoch,
                "iter": current_iter,
                "manual_seed": self.opt["manual_seed"],
                **self.course,
            },
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [],  # learning rates follow from the iteration
            "random": gather_objects(self.random_state),  # of each process
        }
        if self.opt["rank"] == 0:
            save_tensors(
                state, Path(self.opt["path"]["training_states"]) / f"{current_iter}{SUFFIX}"
            )

    def resume_training(self, resume_state: dict) -> None:
        """Take up optimizers, random states and place in the course of training where an earlier run left them.

        Raises:
            AdaBMError: The state is of a run with other options.
        """
        for key, value in self.course.items():
            if resume_state.get(key, value) != value:
                raise AdaBMError(
                    f"cannot resume: {key.replace('_', ' ')} were {resume_state[key]} when the run was saved, and are "
                    f"{value} now; use the same recipe, images and batch size"
                )
        try:
            super().resume_training(resume_state)
        except (AssertionError, ValueError) as error:
            raise AdaBMError(
                f"cannot resume: the training state doesn't fit the options: {error}"
            ) from error
        self.record.forget_phases_after(resume_state["iter"])
        states = resume_state.get("random", [])
        self.random_state = (
            states[self.opt["rank"]] if len(states) == self.opt["world_size"] else None
        )
