"""Writes the option files of this folder, so that those of one kind stay alike: ``python options/generate.py``."""

from pathlib import Path
from string import Template

ROOT = Path(__file__).parent
OFFICIAL = {2: "EDSR_Mx2_f64b16_DIV2K_official-3ba7b086.pth", 4: "EDSR_Mx4_f64b16_DIV2K_official-0c287733.pth"}

VALIDATION = Template("""\
  $phase:  # images with ground truth; SingleImageDataset takes LR images alone
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx$scale
    io_backend:
      type: disk
  $second:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/GTmod12
    dataroot_lq: datasets/Set14/LRbicx$scale
    io_backend:
      type: disk
""")

NETWORK = Template("""\
# network structures
network_g:
  type: AdaBMNetwork
  network:  # any registered architecture, its options untouched
    type: EDSR
    num_in_ch: 3
    num_out_ch: 3
    num_feat: 64
    num_block: 16
    upscale: $scale
    res_scale: 1
    img_range: 255.
    rgb_mean: [0.4488, 0.4371, 0.4040]
  w_bits: $bits  # bits of the weights, 2..8 (32: full precision)
  a_bits: $bits  # bits of the activations; both are means, which layers share and images follow
  recipe: best  # best: most accurate | fast: fewer iterations | paper: as published | static: fixed bits, untrained
  fully_quantized: true  # also what follows the body (adaptive), head and tail (8 bits); false: the body's blocks alone
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
# EDSR-baseline x$scale, quantized adaptively to W${bits}A${bits}, fully quantized.
# adabm-basicsr train -opt options/train/EDSR/train_AdaBM_EDSR_Mx${scale}_W${bits}A${bits}.yml

# general settings
name: AdaBM_EDSR_Mx${scale}_W${bits}A${bits}
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
    use_hflip: true
    use_rot: true

    # data loader
    num_worker_per_gpu: 0  # the images are kept in memory
    batch_size_per_gpu: 2

$validation
$network
# path
path:
  pretrain_network_g: experiments/pretrained_models/EDSR/$official  # plain or quantized: told apart by itself
  resume_state: ~

# training settings
train:
  total_iter: ~  # the recipe's own: best and paper 400, fast 25, static 0
  calibration_batch_size: 16

# validation settings
val:
  val_freq: !!float 400
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
# Test EDSR-baseline x$scale at W${bits}A${bits}, fully quantized.
# adabm-basicsr test -opt options/test/EDSR/test_AdaBM_EDSR_Mx${scale}_W${bits}A${bits}.yml

# general settings
name: test_AdaBM_EDSR_Mx${scale}_W${bits}A${bits}
model_type: AdaBMModel
scale: $scale
num_gpu: auto  # set num_gpu: 0 for cpu mode
manual_seed: 0

# dataset and data loader settings
datasets:
$validation
$network
# path
path:
  pretrain_network_g: experiments/AdaBM_EDSR_Mx${scale}_W${bits}A${bits}/models/net_g_latest.pth

# validation settings
val:
  save_img: true
  suffix: ~  # add suffix to saved images, if None, use exp name

$metrics""")


def render(scale: int, bits: int) -> dict[Path, str]:
    """Text of the training and the test file of one scale and bit-width, by path."""
    values = {"scale": scale, "bits": bits, "official": OFFICIAL[scale]}
    values |= {name: text.substitute(values) for name, text in (("network", NETWORK), ("metrics", METRICS))}
    name = f"AdaBM_EDSR_Mx{scale}_W{bits}A{bits}.yml"
    files = {}
    for folder, phase, second, template in (("train", "val", "val_2", TRAIN), ("test", "test_1", "test_2", TEST)):
        validation = VALIDATION.substitute(values, phase=phase, second=second)
        files[ROOT / folder / "EDSR" / f"{folder}_{name}"] = template.substitute(values, validation=validation)
    return files


def render_all() -> dict[Path, str]:
    """Text of every generated file, by path."""
    return {path: text for scale in (2, 4) for bits in (8, 6, 4) for path, text in render(scale, bits).items()}


if __name__ == "__main__":
    for path, text in render_all().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
