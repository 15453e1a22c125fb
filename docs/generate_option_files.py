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
class Clips:
    """Clips that a network is calibrated and tested on.

    Attributes:
        lq: Folder of the calibration clips, and a word on them.
        frames: Frames of a stretch, or of a window.
        type: Of the test set.
        name: Of the test set.
        roots: Folders of its ground truth and of its LR frames.
        further: Further options of the test set, as YAML.
        crop_border: Pixels at the border that metrics leave out.
        luma: Whether metrics are those of luma alone.
    """

    lq: str
    frames: int
    type: str
    name: str
    roots: tuple[str, str]
    further: str = ""
    crop_border: int = 0
    luma: bool = False


REDS = "datasets/calibration/clips_LRbicx4"
REDS4 = ("datasets/REDS4/GT", "datasets/REDS4/sharp_bicubic")
# Seven frames on either side of one show how errors of recurrent networks add up.
WHOLE_CLIPS = Clips(REDS, 15, "VideoRecurrentTestDataset", "REDS4", REDS4)
WINDOW_OF_7 = "num_frame: 7\npadding: reflection_circle\n"


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
        clips: Of a network that takes clips; None of one that takes images.
    """

    title: str
    name: str
    folder: str
    options: str
    weights: dict[int, str]
    calibration: str = ""
    validation: str = ""
    clips: Clips | None = None


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
    Network(
        title="BasicVSR x$scale",
        name="BasicVSR_REDS",
        folder="BasicVSR",
        options="""\
type: BasicVSR
num_feat: 64
num_block: 30
""",
        weights={4: "BasicVSR/BasicVSR_REDS4-543c8261.pth"},
        clips=WHOLE_CLIPS,
    ),
    Network(
        title="IconVSR x$scale",
        name="IconVSR_REDS",
        folder="BasicVSR",
        options="""\
type: IconVSR
num_feat: 64
num_block: 30
keyframe_stride: 5
temporal_padding: 2
""",
        weights={4: "BasicVSR/IconVSR_REDS-aaa5367f.pth"},
        clips=WHOLE_CLIPS,
    ),
    Network(
        title="BasicVSR++ x$scale",
        name="BasicVSRPP_REDS",
        folder="BasicVSRPP",
        options="""\
type: BasicVSRPlusPlus
mid_channels: 64
num_blocks: 7
is_low_res_input: true
""",
        weights={4: "BasicVSRPP_REDS4.pth"},
        clips=WHOLE_CLIPS,
    ),
    Network(
        title="EDVR-M x$scale",
        name="EDVR_M_x${scale}_SR_REDS",
        folder="EDVR",
        options="""\
type: EDVR
num_in_ch: 3
num_out_ch: 3
num_feat: 64
num_frame: 5
deformable_groups: 8
num_extract_block: 5
num_reconstruct_block: 10
center_frame_idx: ~
hr_in: false
with_predeblur: false
with_tsa: true
""",
        weights={4: "EDVR/EDVR_M_x4_SR_REDS_official-32075921.pth"},
        clips=Clips(
            lq=REDS,
            frames=5,
            type="VideoTestDataset",
            name="REDS4",
            roots=REDS4,
            further="num_frame: 5\npadding: reflection_circle\n",
        ),
    ),
    Network(
        title="DUF x$scale (52 layers)",
        name="DUF_x${scale}_52L",
        folder="DUF",
        options="""\
type: DUF
scale: $scale
num_layer: 52
adapt_official_weights: true
""",
        weights={4: "DUF/DUF_x4_52L_official-483d2c78.pth"},
        clips=Clips(
            lq="datasets/calibration/clips_BDx4  # blurred and reduced as those of the test",
            frames=7,
            type="VideoTestDUFDataset",
            name="Vid4",
            roots=("datasets/Vid4/GT", "datasets/Vid4/BIx4"),
            further=WINDOW_OF_7 + "use_duf_downsampling: true  # LR frames are made of the truth\n",
            crop_border=8,
            luma=True,
        ),
    ),
    Network(
        title="TOFlow x4, which takes frames that are upsampled already",
        name="TOF_x4",
        folder="TOF",
        options="""\
type: TOFlow
adapt_official_weights: true
""",
        weights={1: "TOF/tof_official-e81c455f.pth"},
        clips=Clips(
            lq="datasets/calibration/clips_BIx4up_direct",
            frames=7,
            type="VideoTestDataset",
            name="Vid4",
            roots=("datasets/Vid4/GT", "datasets/Vid4/BIx4up_direct"),
            further=WINDOW_OF_7,
            luma=True,
        ),
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

CLIP_VALIDATION = Template("""\
  $phase:
    name: $set
    type: $type
    dataroot_gt: $gt
    dataroot_lq: $lq
$further    io_backend:
      type: disk
""")

CALIBRATION = Template("""\
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
""")

CLIP_CALIBRATION = Template("""\
  train:  # low-resolution clips alone; no ground truth is needed
    name: Calibration
    type: ClipCalibrationDataset
    dataroot_lq: $lq
    io_backend:
      type: disk

    num_clips: 100  # taken evenly from the folder
    dataset_enlarge_ratio: 1  # stretches of each clip; more where there are few clips
    num_frame: $frames
    lq_size: 64  # LR patch
    use_hflip: true
    use_rot: true
    random_reverse: true

    # data loader
    num_worker_per_gpu: 0  # the clips are kept in memory
    batch_size_per_gpu: 2
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
      crop_border: $crop_border
      test_y_channel: $luma
    ssim:
      type: calculate_ssim
      crop_border: $crop_border
      test_y_channel: $luma
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
$train
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
        "crop_border": scale,
        "luma": "true",
    }
    for key in ("title", "name", "options"):
        values[key] = Template(getattr(network, key)).substitute(scale=scale)
    name = f"AdaBM_{values['name']}"
    values["name"] = name
    values["options"] = indent(str(values["options"]), INDENT)
    values["network"] = NETWORK.substitute(values)
    values["train"] = CALIBRATION.substitute(values)
    validation = VALIDATION
    if network.clips is not None:
        values.update(_values_of_clips(network.clips))
        values["train"] = CLIP_CALIBRATION.substitute(values, lq=network.clips.lq)
        validation = CLIP_VALIDATION
    values["metrics"] = METRICS.substitute(values)
    files = {}
    for folder, phase, second, template in (
        ("train", "val", "val_2", TRAIN),
        ("test", "test_1", "test_2", TEST),
    ):
        values["validation"] = validation.substitute(values, phase=phase, second=second)
        path = ROOT / folder / network.folder / f"{folder}_{name}.yml"
        files[path] = template.substitute(values)
    return files


def _values_of_clips(clips: Clips) -> dict[str, object]:
    """What the templates say of clips."""
    truth, low = clips.roots
    return {
        "frames": clips.frames,
        "set": clips.name,
        "type": clips.type,
        "gt": truth,
        "lq": low,
        "further": indent(clips.further, INDENT),
        "crop_border": clips.crop_border,
        "luma": str(clips.luma).lower(),
    }


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
