"""``AdaBMModel``: calibration, clipping, fine-tuning and validation under BasicSR's training loop."""

from __future__ import annotations

import inspect
import json
import os
from collections import OrderedDict
from pathlib import Path
from statistics import mean

import torch
from basicsr.data import build_dataset
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import METRIC_REGISTRY, MODEL_REGISTRY
from torch import nn
from tqdm import tqdm

from adabm_basicsr.compat import gpus_per_process
from adabm_basicsr.data.calibration_dataset import CalibrationDataset
from adabm_basicsr.deployment.tiles import upscale_tiles
from adabm_basicsr.errors import AdaBMError, check_keys, check_positive
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.calibration import calibrate, check_finite
from adabm_basicsr.quantization.checkpoint import load_checkpoint, save_checkpoint
from adabm_basicsr.quantization.cost import Cost, CostMeter, size_bytes
from adabm_basicsr.quantization.coverage import measure_coverage
from adabm_basicsr.quantization.finetuning import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.sizes import find_size_multiple, run_padded
from adabm_basicsr.quantization.summary import summarize

TRAIN_OPTIONS = ("total_iter", "calibration_batch_size", "finetune", "pbar")
PHASE_NAMES = {
    "weight_range": "weight ranges",
    "activation_range": "activation ranges",
    "bit_mapping": "bit mappings",
    "distillation": "rounding, biases and ranges",
}


@MODEL_REGISTRY.register()
class AdaBMModel(SRModel):
    """Quantizes ``network_g`` in training; tests any network with FAB, BitOPs and size beside BasicSR's metrics.

    Args:
        opt: BasicSR's options. Under ``train``: ``total_iter``; ``calibration_batch_size`` (16); ``finetune`` with the
            fields of `FinetuneSettings`; ``pbar``, whether to show a progress bar.

    Raises:
        AdaBMError: An option is unknown, out of range, or asks for a GPU that isn't there.
    """

    def __init__(self, opt: dict) -> None:
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise AdaBMError(f"num_gpu: {opt['num_gpu']}, but there is no CUDA device; set num_gpu: 0 (or auto)")
        super().__init__(opt)
        self._tell_coverage()
        self.cost_meter: CostMeter | None = None
        self.costs: list[Cost] = []
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

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = None) -> None:
        """Load a plain or quantized checkpoint, told apart by content; see `load_checkpoint`."""
        get_root_logger().info(f"Loading {load_path}")
        load_checkpoint(self.get_bare_model(net), load_path, param_key)

    def init_training_settings(self) -> None:
        """Calibrate, unless a quantized checkpoint was loaded, and set up fine-tuning."""
        net, train_opt = self.get_bare_model(self.net_g), self.opt["train"]
        check_keys("train", train_opt, TRAIN_OPTIONS)
        if not isinstance(net, QuantizedNetwork):
            raise AdaBMError("network_g: AdaBMModel trains type AdaBMNetwork, with your architecture under network")
        if not self.opt["path"].get("pretrain_network_g") and not getattr(net.network, "has_weights", False):
            raise AdaBMError("path: pretrain_network_g is missing: there are no weights to quantize")
        dataset = build_dataset(self.opt["datasets"]["train"])
        if not isinstance(dataset, CalibrationDataset):
            raise AdaBMError("datasets: train: type must be CalibrationDataset")
        if dataset.channels != net.in_channels:
            raise AdaBMError(
                f"datasets: train: channels: {dataset.channels}, but the network takes {net.in_channels} channels"
            )
        if net.stage == Stage.FRESH:
            size = check_positive("train: calibration_batch_size", train_opt.get("calibration_batch_size", 16))
            self._calibrate(net, dataset.calibration_batches(size))
        self._set_up_finetuning(net, dataset)

    def _calibrate(self, net: QuantizedNetwork, batches: list[torch.Tensor]) -> None:
        batches = [batch.to(self.device) for batch in batches]
        calibrate(net, tqdm(batches, desc="Calibration", unit="batch", disable=self._hides_progress()))
        get_root_logger().info(f"Calibrated on {sum(map(len, batches))} images:\n{summarize(net, batches[0])}")

    def _set_up_finetuning(self, net: QuantizedNetwork, dataset: CalibrationDataset) -> None:
        train_opt = self.opt["train"]
        batch = self.opt["datasets"]["train"]["batch_size_per_gpu"] * gpus_per_process(self.opt)
        iterations = -(-dataset.rounds * len(dataset) // self.opt["world_size"]) // batch
        if not iterations:
            raise AdaBMError(f"datasets: train: {len(dataset)} images don't fill a batch; lower batch_size_per_gpu")
        settings = FinetuneSettings.from_options(train_opt.get("finetune") or {})
        self.tuner = Finetuner(net, settings, iterations, train_opt["total_iter"])
        if train_opt["total_iter"] and not self.tuner.phases:
            raise AdaBMError(f"recipe {net.config.recipe!r} has nothing to fine-tune; set train: total_iter: 0")
        self.optimizers, self.iteration, self.log_dict = self.tuner.optimizers, 1, OrderedDict()
        hidden = self._hides_progress() if train_opt["total_iter"] else True
        self.progress = tqdm(total=train_opt["total_iter"], desc="Fine-tuning", disable=hidden)

    def _hides_progress(self) -> bool | None:
        """What tqdm takes as ``disable``: None hides a bar only where there is no terminal."""
        return None if self.opt["train"].get("pbar", False) and self.opt["rank"] == 0 else True

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Learning rates follow from the iteration alone; `Finetuner` sets them."""
        self.iteration = current_iter

    def get_current_learning_rate(self) -> list[float]:
        """Learning rates of the phase at work."""
        return [group["lr"] for group in self.tuner.optimizer(self.iteration).param_groups]

    def feed_data(self, data: dict) -> None:
        """Take a batch; patches that come back in later epochs have keys."""
        super().feed_data(data)
        fixed = self.is_train and "patch_key" in data
        self.patch_keys = data["patch_key"].tolist() if fixed else None

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of fine-tuning on ``self.lq``."""
        if (current_iter - 1) % self.tuner.iterations_per_epoch == 0:
            phase = PHASE_NAMES[self.tuner.phases[self.tuner.phase_index(current_iter)]]
            bits = ", ".join(f"{name} {bits:.0f}" for name, bits in self._layer_bits().items())
            get_root_logger().info(f"Fine-tuning {phase} from iteration {current_iter}; bits of layers: {bits}")
            self.progress.set_postfix_str(phase)
        losses = self.tuner.step(self.lq, current_iter, self.net_g, self.patch_keys)
        self.log_dict = self.reduce_loss_dict(OrderedDict(losses))
        self.log_dict["phase"] = float(self.tuner.phase_index(current_iter))
        self.progress.update(current_iter - self.progress.n)
        if current_iter == self.opt["train"]["total_iter"]:
            self.progress.close()
            self.tuner.teacher.forget()

    def _layer_bits(self) -> dict[str, float]:
        """Bits of each layer whose input is quantized, base and layer factor together."""
        net = self.get_bare_model(self.net_g)
        quantizers = net.activation_quantizers() if isinstance(net, QuantizedNetwork) else {}
        return {name: quantizer.bits_of_layer().item() for name, quantizer in quantizers.items()}

    def test(self) -> None:
        """Super-resolve ``self.lq``, in tiles if ``val: tile`` asks for them, and note what it cost."""
        check_finite(self.lq, "an image")
        net, val, costs = self.get_bare_model(self.net_g).eval(), self.opt.get("val") or {}, []

        def run(image: torch.Tensor) -> torch.Tensor:
            output = run_padded(net, image, self._size_multiple(net))
            costs.append(self.cost_meter.read(len(image)))
            return output

        with torch.no_grad():
            tile = val.get("tile")
            self.output = upscale_tiles(run, self.lq, tile, val["tile_overlap"]) if tile else run(self.lq)
        self._check_scale()
        self.costs.append(Cost(mean(cost.fab for cost in costs), sum(cost.bitops for cost in costs)))

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
            self.size_multiple = getattr(net, "size_multiple", None) or find_size_multiple(net, self.lq)
        return self.size_multiple

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """BasicSR's validation, with FAB, BitOPs and size as further metrics."""
        asked = self.opt["val"].get("metrics")
        if asked and "dataroot_gt" not in dataloader.dataset.opt:
            self.opt["val"]["metrics"] = _without_ground_truth(asked)
        self.costs = []
        vars(self).pop("metric_results", None)  # BasicSR keeps the names of the first validation set's metrics
        with CostMeter(self.get_bare_model(self.net_g)) as self.cost_meter:
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        name = dataloader.dataset.opt["name"]
        results = dict(self.metric_results) if self.opt["val"].get("metrics") else {}
        costs = {
            "fab": sum(cost.fab for cost in self.costs) / len(self.costs),
            "bitops": sum(cost.bitops for cost in self.costs) / len(self.costs),
            "weight_bytes": size_bytes(self.get_bare_model(self.net_g)),
        }
        self._log_costs(name, costs, tb_logger, current_iter)
        self._write_metrics(name, {**results, **costs})
        self.opt["val"]["metrics"] = asked

    def _log_costs(self, dataset: str, costs: dict[str, float], tb_logger, current_iter) -> None:
        lines = [f"\t # fab: {costs['fab']:.4f}", f"\t # bitops: {costs['bitops']:.4e}"]
        lines.append(f"\t # weight_bytes: {costs['weight_bytes']}")
        get_root_logger().info("\n".join([f"Validation {dataset}", *lines]) + "\n")
        if tb_logger:
            for metric, value in costs.items():
                tb_logger.add_scalar(f"metrics/{dataset}/{metric}", value, current_iter)
            for name, bits in self._layer_bits().items():
                tb_logger.add_scalar(f"bits/{name}", bits, current_iter)

    @master_only
    def _write_metrics(self, dataset: str, metrics: dict[str, float]) -> None:
        """Keep the latest figures of every validation set in ``metrics.json`` beside the log."""
        path = Path(self.opt["path"]["log"]) / "metrics.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({**kept, dataset: metrics}, indent=2))

    @master_only
    def save_network(self, net: nn.Module, net_label: str, current_iter: int, param_key: str = "params") -> None:
        """Save atomically; a write error stops the run (BasicSR only warns)."""
        name = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
        save_checkpoint(self.get_bare_model(net), os.path.join(self.opt["path"]["models"], name))

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save what `resume_training` needs, atomically; a write error stops the run (BasicSR only warns)."""
        if current_iter == -1:
            return
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"epoch": epoch, "iter": current_iter, "optimizers": optimizers, "schedulers": []}
        with atomic_path(Path(self.opt["path"]["training_states"]) / f"{current_iter}.state") as temporary:
            torch.save(state, temporary)


def _without_ground_truth(metrics: dict[str, dict]) -> dict[str, dict]:
    """The metrics that judge an image alone, such as NIQE."""
    return {
        name: options
        for name, options in metrics.items()
        if "img2" not in inspect.signature(METRIC_REGISTRY.get(options["type"])).parameters
    }
