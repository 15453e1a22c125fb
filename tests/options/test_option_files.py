"""The shipped option files: current, valid, and fit to run."""

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from conftest import write_images

from adabm_basicsr import calibrate, save_checkpoint
from adabm_basicsr.bridge.run_options import make_parser, parse_options
from adabm_basicsr.options.yaml_files import load_yaml

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / "options"
TRAIN = sorted((OPTIONS / "train").rglob("train_AdaBM_*.yml"))
TEST = sorted((OPTIONS / "test").rglob("*.yml"))
FILES = sorted(OPTIONS.rglob("*.yml"))
SCHEMA = json.loads((ROOT / "adabm_basicsr" / "options" / "schema.json").read_text())
BLOCKS = {"num_feat": 8, "num_block": 1}
# What replaces a network's options in a run that takes seconds.
SMALL = {
    "EDSR": BLOCKS,
    "MSRResNet": BLOCKS,
    "SRResNet": BLOCKS,
    "RCAN": {**BLOCKS, "num_group": 2, "squeeze_factor": 4},
    "RDN": {**BLOCKS, "num_conv": 2, "num_grow_ch": 8},
    "RRDBNet": {**BLOCKS, "num_grow_ch": 8},
    "SRVGGNetCompact": {"num_feat": 8, "num_conv": 3},
    "ECBSR": {"num_block": 2, "num_channel": 8},
    "SwinIR": {"depths": [1, 1], "embed_dim": 12, "num_heads": [2, 2]},
    "BasicVSR": BLOCKS,
    "IconVSR": BLOCKS,
    "BasicVSRPlusPlus": {"mid_channels": 8, "num_blocks": 1},
    "EDVR": {
        "num_feat": 8,
        "deformable_groups": 4,
        "num_extract_block": 1,
        "num_reconstruct_block": 1,
    },
    "DUF": {"num_layer": 16},
    "TOFlow": {},
}
# Frames of a clip, and their height and width.
FRAMES = 7
SIDE = 36


def name_of(path):
    return path.stem


def generator():
    path = ROOT / "docs" / "generate_option_files.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_current():
    files = generator().render_all()
    assert {path: path.read_text() for path in files} == files
    assert set(files) == set(TRAIN + TEST)


def network_type(path):
    return load_yaml(path)["network_g"]["network"]["type"]


def test_every_supported_network_has_files():
    assert {network_type(path) for path in TRAIN} == set(SMALL)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_of_the_schema_that_they_name(path):
    first, *_ = path.read_text().splitlines()
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads((path.parent / named).read_text()) == SCHEMA
    jsonschema.validate(load_yaml(path), SCHEMA)


def matching_test(path):
    """The test file that belongs to a training file."""
    return OPTIONS / "test" / path.parent.name / path.name.replace("train_", "test_")


@pytest.mark.parametrize("path", TRAIN, ids=name_of)
def test_training_and_test_file_belong_together(path):
    trained = load_yaml(path)
    tested = load_yaml(matching_test(path))
    name = trained["name"]
    assert path.stem == f"train_{name}"
    assert tested["name"] == f"test_{name}"
    assert tested["scale"] == trained["scale"]
    assert tested["path"]["pretrain_network_g"] == f"experiments/{name}/models/net_g_latest.pth"
    for file in (path, matching_test(path)):
        assert f"-opt {file.relative_to(ROOT)}\n" in file.read_text()  # its own command


def make_files(root, opt):
    """What an option file names, in small: random weights, calibration images, validation sets."""
    from basicsr.archs import build_network

    path = root / opt["path"]["pretrain_network_g"]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = build_network(dict(opt["network_g"]["network"]))
    torch.save({"params": network.state_dict()}, path)
    scale = opt["scale"]
    for dataset in opt["datasets"].values():
        sizes = [(16, 18)] * 2
        roots = {"dataroot_lq": "", "dataroot_gt": ""}
        if takes_clips(opt):
            sizes = [(SIDE, SIDE)] * FRAMES
            roots = dict.fromkeys(roots, "000")
        for key, clip in roots.items():
            factor = scale if key == "dataroot_gt" else 1
            if key in dataset:
                larger = [(factor * height, factor * width) for height, width in sizes]
                write_images(root / dataset[key] / clip, larger)


def takes_clips(opt):
    return opt["datasets"]["train"]["type"] == "ClipCalibrationDataset"


def overrides(path, smaller):
    """What makes a training file's run short."""
    changes = {"num_gpu": 0, "train:total_iter": 3}
    opt = load_yaml(path)
    if takes_clips(opt):
        changes["datasets:train:num_frame"] = min(opt["datasets"]["train"]["num_frame"], FRAMES)
        changes["datasets:train:lq_size"] = SIDE
        changes["datasets:train:dataset_enlarge_ratio"] = 2
    else:
        changes["datasets:train:lq_size"] = 16
    for key, value in smaller.items():
        changes[f"network_g:network:{key}"] = value
    return [f"{key}={value}" for key, value in changes.items()]


def smaller_options(path, smaller):
    opt = load_yaml(path)
    opt["network_g"]["network"].update(smaller)
    return opt


def parse(path, is_train, *changes):
    """All that a command does with an option file before the run."""
    flags = make_parser("test").parse_args(["-opt", str(path), "--force_yml", *changes])
    return parse_options(flags, Path.cwd(), is_train)


def check_pair(path, root, smaller):
    """Read both files of a name as their commands do, which builds and runs the network."""
    from basicsr.archs import build_network

    make_files(root, smaller_options(path, smaller))
    opt = parse(
        path, True, *overrides(path, smaller), "network_g:recipe=static", "train:total_iter=0"
    )
    net = build_network(opt["network_g"])
    checkpoint = Path("experiments", opt["name"], "models", "net_g_latest.pth")
    checkpoint.parent.mkdir(parents=True)
    calibrate(net, [torch.rand(1, net.in_channels, 16, 16)])
    save_checkpoint(net, checkpoint)
    tested = parse(matching_test(path), False, "num_gpu=0")
    assert tested["network_g"]["network"] == opt["network_g"]["network"]
    assert tested["network_g"]["recipe"] == "static"


OF_CLIPS = [path for path in TRAIN if takes_clips(load_yaml(path))]


@pytest.mark.parametrize("path", OF_CLIPS, ids=name_of)
def test_files_of_clips_name_networks_of_basicsrs(path):
    """In their own size; they are quantized below, as that takes long."""
    from basicsr.archs import build_network

    assert build_network(load_yaml(path)["network_g"]["network"])


@pytest.mark.parametrize("path", [path for path in TRAIN if path not in OF_CLIPS], ids=name_of)
def test_files_name_what_can_be_built(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_pair(path, tmp_path, SMALL[network_type(path)])


# Each network once.
IN_FULL = [path for path in TRAIN if "x4" in path.stem and path not in OF_CLIPS]


@pytest.mark.slow
@pytest.mark.parametrize("path", IN_FULL, ids=name_of)
def test_networks_can_be_built_in_their_own_size(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_pair(path, tmp_path, {})


# A convolutional network, one with attention and one for grey images.
RUN = [
    path
    for path in TRAIN
    if path.stem.split("AdaBM_")[1] in ("EDSR_Mx4", "SwinIR_Sx2", "ECBSR_x4_m4c16_prelu")
]


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_train_and_test_files_run_together(path, tmp_path, monkeypatch):
    from adabm_basicsr.test import main as test
    from adabm_basicsr.train import main as train

    monkeypatch.chdir(tmp_path)
    smaller = SMALL[network_type(path)]
    make_files(tmp_path, smaller_options(path, smaller))
    train(["-opt", str(path), "--force_yml", *overrides(path, smaller)])
    test(["-opt", str(matching_test(path)), "--force_yml", "num_gpu=0"])
    results = Path("results", matching_test(path).stem)
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics) == {"Set5", "Set14"}
    assert all(values["psnr"] > 0 and 2 <= values["fab"] <= 8 for values in metrics.values())
    assert (results / "visualization" / "Set14").is_dir()


# Of recurrent networks none: they take minutes.
OF_WINDOWS = [
    path
    for path in OF_CLIPS
    if load_yaml(path)["datasets"]["val"]["type"] != "VideoRecurrentTestDataset"
]


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_WINDOWS, ids=name_of)
def test_train_and_test_files_of_clips_run_together(path, tmp_path, monkeypatch):
    from adabm_basicsr.test import main as test
    from adabm_basicsr.train import main as train

    monkeypatch.chdir(tmp_path)
    smaller = SMALL[network_type(path)]
    make_files(tmp_path, smaller_options(path, smaller))
    short = [*overrides(path, smaller), "network_g:recipe=static", "train:total_iter=0"]
    train(["-opt", str(path), "--force_yml", *short])
    test(["-opt", str(matching_test(path)), "--force_yml", "num_gpu=0"])
    results = Path("results", matching_test(path).stem)
    (metrics,) = json.loads((results / "metrics.json").read_text()).values()
    assert metrics["psnr"] > 0
    assert 2 <= metrics["fab"] <= 8
    assert len(list((results / "visualization").rglob("*.png"))) == FRAMES


def test_full_precision_training_file_is_basicsrs_own(tmp_path, monkeypatch):
    from adabm_basicsr.train import main as train

    monkeypatch.chdir(tmp_path)
    opt = load_yaml(OPTIONS / "train" / "EDSR" / "train_EDSR_Mx4_BSDS400.yml")
    assert opt["model_type"] == "SRModel"
    assert opt["network_g"]["type"] == "EDSR"
    opt["network_g"].update(num_feat=8, num_block=1)
    opt["num_gpu"], opt["train"]["total_iter"], opt["datasets"]["train"]["gt_size"] = 0, 2, 32
    opt["datasets"]["train"].update(
        batch_size_per_gpu=2, num_worker_per_gpu=0, dataset_enlarge_ratio=1
    )
    opt["logger"]["use_tb_logger"] = False
    for dataset in opt["datasets"].values():
        write_images(tmp_path / dataset["dataroot_lq"], [(24, 24)] * 2)
        write_images(tmp_path / dataset["dataroot_gt"], [(96, 96)] * 2)
    Path("train.yml").write_text(yaml.safe_dump(opt))
    train(["-opt", "train.yml"])
    assert Path("experiments", opt["name"], "models", "net_g_latest.pth").is_file()
