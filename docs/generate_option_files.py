"""Writes the option files of options/train and options/test, so that they stay alike.

``python docs/generate_option_files.py``: a file to train and one to test for each network and
scale.
"""

from dataclasses import dataclass
from pathlib import Path
from string import Template
from textwrap import indent

ROOT = Path(__file__).parents[1] / "options"
SCHEMA = "# yaml-language-server: $schema=../../../adabm_basicsr/options/schema.json"
INDENT = " " * 4


@dataclass(frozen=True)
class Network:
    """One full-precision network, quantized at each of its scales.

    Attributes:
        title: What the files' comments call it.
        name: Its part of file and experiment names; ``$scale`` stands for the scale, in
            title and options too.
        folder: Where its files lie, as BasicSR has them.
        options: ``network_g`` of the network in full precision, as YAML.
        weights: File of the full-precision checkpoint, by scale.
        calibration: Further options of the calibration images, as YAML.
        validation: Further options of the validation sets, as YAML.
    """

    title: str
    name: str
    folder: str
    options: str
    weights: dict[int, str]
    calibration: str = ""
    validation: str = ""


NETWORKS = (
    Network(
        title="EDSR-baseline x$scale",
        name="EDSR_Mx$scale",
        folder="EDSR",
        options="""\
type: EDSR
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_block: 16
upscale: $scale
res_scale: 1
img_range: 255.
rgb_mean: [0.4488, 0.4371, 0.4040]
""",
        weights={
            2: "EDSR/EDSR_Mx2_f64b16_DIV2K_official-3ba7b086.pth",
            4: "EDSR/EDSR_Mx4_f64b16_DIV2K_official-0c287733.pth",
        },
    ),
    Network(
        title="MSRResNet x$scale",
        name="MSRResNet_x$scale",
        folder="SRResNet_SRGAN",
        options="""\
type: MSRResNet
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_block: 16
upscale: $scale
""",
        weights={4: "SRResNet_SRGAN/MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb.pth"},
    ),
    Network(
        title="SRResNet x$scale (with batch normalisation)",
        name="SRResNet_x$scale",
        folder="SRResNet_SRGAN",
        options="""\
type: SRResNet
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_block: 16
upscale: $scale
img_range: 255.
""",
        weights={4: "SRResNet_SRGAN/SRResNet_x4.pth"},
    ),
    Network(
        title="RCAN x$scale",
        name="RCAN_x$scale",
        folder="RCAN",
        options="""\
type: RCAN
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_group: 10
num_block: 20
squeeze_factor: 16
upscale: $scale
res_scale: 1
img_range: 255.
rgb_mean: [0.4488, 0.4371, 0.4040]
""",
        weights={4: "RCAN/RCAN_BIX4-official.pth"},
    ),
    Network(
        title="RDN x$scale",
        name="RDN_x$scale",
        folder="RDN",
        options="""\
type: RDN
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_block: 16
num_conv: 8
num_grow_ch: 64
upscale: $scale
img_range: 255.
""",
        weights={4: "RDN/RDN_x4.pth"},
    ),
    Network(
        title="RRDBNet x$scale with the weights of Real-ESRGAN",
        name="RealESRGAN_x${scale}plus",
        folder="RealESRGAN",
        options="""\
type: RRDBNet
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_block: 23
num_grow_ch: 32
scale: $scale
""",
        weights={2: "RealESRGAN/RealESRGAN_x2plus.pth", 4: "RealESRGAN/RealESRGAN_x4plus.pth"},
    ),
    Network(
        title="SRVGGNetCompact x$scale (realesr-animevideov3)",
        name="SRVGGNetCompact_x$scale",
        folder="RealESRGAN",
        options="""\
type: SRVGGNetCompact
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_conv: 16
upscale: $scale
act_type: prelu
""",
        weights={4: "RealESRGAN/realesr-animevideov3.pth"},
    ),
    Network(
        title="ECBSR x$scale (m4c16, PReLU, Y channel)",
        name="ECBSR_x${scale}_m4c16_prelu",
        folder="ECBSR",
        options="""\
type: ECBSR
num_in_ch: 1
num_out_ch: 1
num_block: 4
num_channel: 16
with_idt: false
act_type: prelu
scale: $scale
""",
        weights={2: "ECBSR/ECBSR_x2_m4c16_prelu.pth", 4: "ECBSR/ECBSR_x4_m4c16_prelu.pth"},
        calibration="channels: 1  # grey\n",
        validation="color: y\n",
    ),
    Network(
        title="SwinIR-S x$scale (lightweight)",
        name="SwinIR_Sx$scale",
        folder="SwinIR",
        options="""\
type: SwinIR
upscale: $scale
in_chans: 3
img_size: 64
window_size: 8
img_range: 1.
depths: [6, 6, 6, 6]
embed_dim: 60
num_heads: [6, 6, 6, 6]
mlp_ratio: 2
upsampler: pixelshuffledirect
resi_connection: 1conv
""",
        weights={
            2: "SwinIR/002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2.pth",
            4: "SwinIR/002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4.pth",
        },
    ),
)

VALIDATION = Template("""\
  $phase:  # images with ground truth; SingleImageDataset takes LR images alone
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx$scale
$further    io_backend:
      type: disk
  $second:  # as many sets as you like; leave out those that you don't have
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/GTmod12
    dataroot_lq: datasets/Set14/LRbicx$scale
$further    io_backend:
      type: disk
""")

NETWORK = Template("""\
# network structures
network_g:
  type: AdaBMNetwork
  network:  # any registered architecture, its options untouched
$options  w_bits: 4  # of weights, a mean over the network: 2 to 8, or 32 for full precision
  a_bits: 4  # of activations, a mean over layers: 2 to 8 (recipe paper: 3 to 8), or 32
  recipe: best  # or fast (fewer iterations), paper (as published), static (nothing adapts)
  # Also what follows the body, and head and tail at 8 bits; false: the body's blocks alone.
  fully_quantized: true
""")

METRICS = Template("""\
  metrics:
    psnr:  # metric name, can be arbitrary; FAB, BitOPs and size are added by themselves
      type: calculate_psnr
      crop_border: $scale
      test_y_channel: true
    ssim:
      type: calculate_ssim
      crop_border: $scale
      test_y_channel: true
""")

TRAIN = Template("""\
$schema
# $title, quantized adaptively to W4A4, fully quantized.
# adabm-basicsr train -opt options/train/$folder/train_$name.yml

# general settings
name: $name
model_type: AdaBMModel
scale: $scale
num_gpu: auto  # set num_gpu: 0 for cpu mode
manual_seed: 0

# dataset and data loader settings
datasets:
  train:  # low-resolution images alone; no ground truth is needed
    name: Calibration
    type: CalibrationDataset
    dataroot_lq: datasets/calibration/LRbicx$scale
    io_backend:
      type: disk

    num_images: 100  # taken evenly from the folder
    lq_size: 96  # LR patch
$calibration    use_hflip: true
    use_rot: true

    # data loader
    num_worker_per_gpu: 0  # the images are kept in memory
    batch_size_per_gpu: 2

$validation
$network
# path
path:
  # Plain or quantized: the checkpoint says which.
  pretrain_network_g: experiments/pretrained_models/$weights
  resume_state: ~

# training settings
train:
  total_iter: ~  # the recipe's own: best and paper 400, fast 20, static 0
  calibration_batch_size: 16

# validation settings
val:
  val_freq: !!float 1e4  # the end of the run is validated in any case
  save_img: false

$metrics
# logging settings
logger:
  print_freq: 10
  save_checkpoint_freq: !!float 400
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~
""")

TEST = Template("""\
$schema
# Test $title, at the bits that it was trained for.
# adabm-basicsr test -opt options/test/$folder/test_$name.yml

# general settings
name: test_$name
model_type: AdaBMModel
scale: $scale
num_gpu: auto  # set num_gpu: 0 for cpu mode
manual_seed: 0

# dataset and data loader settings
datasets:
$validation
# network_g is taken from the checkpoint, which holds the options that it was trained with.

# path
path:
  pretrain_network_g: experiments/$name/models/net_g_latest.pth

# validation settings
val:
  save_img: true
  suffix: ~  # add suffix to saved images, if None, use exp name

$metrics""")


def render(network: Network, scale: int) -> dict[Path, str]:
    """Text of the training and the test file of one network and scale, by path."""
    values: dict[str, object] = {
        "schema": SCHEMA,
        "scale": scale,
        "folder": network.folder,
        "weights": network.weights[scale],
        "calibration": indent(network.calibration, INDENT),
        "further": indent(network.validation, INDENT),
    }
    for key in ("title", "name", "options"):
        values[key] = Template(getattr(network, key)).substitute(scale=scale)
    name = f"AdaBM_{values['name']}"
    values["name"] = name
    values["options"] = indent(str(values["options"]), INDENT)
    values["network"] = NETWORK.substitute(values)
    values["metrics"] = METRICS.substitute(values)
    files = {}
    for folder, phase, second, template in (
        ("train", "val", "val_2", TRAIN),
        ("test", "test_1", "test_2", TEST),
    ):
        validation = VALIDATION.substitute(values, phase=phase, second=second)
        path = ROOT / folder / network.folder / f"{folder}_{name}.yml"
        files[path] = template.substitute(values, validation=validation)
    return files


def render_all() -> dict[Path, str]:
    """Text of every generated file, by path."""
    files = {}
    for network in NETWORKS:
        for scale in network.weights:
            files.update(render(network, scale))
    return files


if __name__ == "__main__":
    for path, text in render_all().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
