"""Mistakes of users: each ends in one line that names it, and exit code 2."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import write_clips
from clip_networks import Demanding
from conftest import TINY_EDSR

from adabm_basicsr.commands.main import main
from adabm_basicsr.data.prepare_clips import prepare_clips
from adabm_basicsr.runs.record import read_record

RESULTS = ("experiments", "results", "tb_logger")
TRAIN_MISTAKES = {
    "missing section": ({"network_g": ...}, "network_g is missing from the option file"),
    "misspelt section": (
        {"model_type": ..., "modeltype": "AdaBMModel"},
        "model_type is missing from the option file; 'modeltype' is no key",
    ),
    "unknown section": (
        {"networks": 1},
        "option file: unknown key 'networks'; did you mean 'network_g'?",
    ),
    "unknown key": (
        {"network_g__w_bit": 4},
        "network_g: unknown key 'w_bit'; did you mean 'w_bits' or 'a_bits'?",
    ),
    "unknown recipe": (
        {"network_g__recipe": "papper"},
        "did you mean 'paper'? (valid: 'paper', 'best', 'static'",
    ),
    "unknown observer": (
        {"network_g__observer": "mse"},
        "observer: unknown value 'mse'; did you mean 'omse'?",
    ),
    "loss of PSNR without ground truth": (
        {"network_g__recipe": "fast", "network_g__target": {"psnr_drop": 0.1}},
        "network_g: target: psnr_drop needs ground truth; give a datasets: val with dataroot_gt",
    ),
    "bits too low": ({"network_g__w_bits": 1}, "w_bits: 1 is out of range; valid: 2 to 8, or 32"),
    "bits too high": (
        {"network_g__w_bits": 9},
        "network_g: w_bits: 9 is out of range; valid: 2 to 8, or 32",
    ),
    "bits no number": (
        {"network_g__a_bits": "4"},
        "a_bits: '4' is text; give the number without quotes",
    ),
    "bits too low for paper": (
        {"network_g__a_bits": 2},
        "a_bits: 2 is out of range; valid with recipe paper: 3 to 8",
    ),
    "layer bits": (
        {"network_g__layers": {"body.*": {"w_bits": 12}}},
        "layers: body.*: w_bits: 12 is out of range",
    ),
    "pattern": (
        {"network_g__exclude": ["bodi.*"]},
        "network_g: exclude: pattern 'bodi.*' matches no layer",
    ),
    "unregistered": (
        {"network_g__network__type": "EDRS"},
        "type: 'EDRS' is not registered (custom_imports registers your own); did you mean 'EDVR' "
        "or 'EDSR'?",
    ),
    "arch option": (
        {"network_g__network__num_blocks": 2},
        "network_g: network: EDSR: unknown key 'num_blocks'; did you mean 'num_block'",
    ),
    "arch option missing": (
        {"network_g__network__num_in_ch": ...},
        "network_g: network: EDSR needs num_in_ch",
    ),
    "custom import": (
        {"network_g__custom_imports": ["no_such_module"]},
        "cannot import 'no_such_module'",
    ),
    "no weights": ({"path__pretrain_network_g": None}, "path: pretrain_network_g is missing"),
    "weights absent": (
        {"path__pretrain_network_g": "gone.pth"},
        "path: pretrain_network_g: checkpoint gone.pth does not exist",
    ),
    "folder absent": (
        {"datasets__train__dataroot_lq": "gone"},
        "datasets: train: dataroot_lq: folder gone does not exist",
    ),
    "folder empty": ({"datasets__train__dataroot_lq": "empty"}, "folder empty holds no images"),
    "patch size": ({"datasets__train__lq_size": 0}, "lq_size: 0 is not a positive whole number"),
    "dataset key": (
        {"datasets__train__lq_siz": 24},
        "unknown key 'lq_siz'; did you mean 'lq_size'?",
    ),
    "batch too large": (
        {"datasets__train__batch_size_per_gpu": 99},
        "8 images can't fill a batch; raise dataset_enlarge_ratio (1) or lower batch_size_per_gpu",
    ),
    "gpu on a CPU": (
        {"num_gpu": 1},
        "num_gpu: 1, but there are 0 CUDA devices; set num_gpu: 0 or auto",
    ),
    "gpu no number": ({"num_gpu": "one"}, "num_gpu: 'one' is not a number of GPUs"),
    "train key": (
        {"train__total_iters": 4},
        "train: unknown key 'total_iters'; did you mean 'total_iter'?",
    ),
    "iterations": (
        {"train__total_iter": -1},
        "train: total_iter: -1 is not a whole number of iterations",
    ),
    "static with iterations": (
        {"network_g__recipe": "static"},
        "recipe 'static' has nothing to fine-tune",
    ),
    "learning rate": (
        {"train__finetune": {"learning_rates": {"weights": 1}}},
        "train: finetune: learning_rates: unknown key 'weights'",
    ),
    "model type": (
        {"model_type": "AdaBModel"},
        "model_type: 'AdaBModel' is not registered; did you mean 'AdaBMModel'",
    ),
    "model type, length from the recipe": (
        {"model_type": "AdaBMmodel", "train__total_iter": None},
        "model_type: 'AdaBMmodel' is not registered; did you mean 'AdaBMModel'",
    ),
    "network type, length from the recipe": (
        {"network_g__type": "AdaBMNetwrok", "train__total_iter": None},
        "train: total_iter is missing; a recipe gives it for network_g: type: AdaBMNetwork with "
        "datasets: train: type: CalibrationDataset or ClipCalibrationDataset alone, and here they "
        "are 'AdaBMNetwrok' and",
    ),
    "data sets as text": ({"datasets": "lr"}, "datasets: 'lr' is not a section of keys"),
    "network type": (
        {"network_g__type": "AdaBMNet"},
        "network_g: type: 'AdaBMNet' is not registered; did you mean 'AdaBMNetwork'?",
    ),
    "plain network with options of a quantized one": (
        {"network_g__type": "MSRResNet"},
        "network_g: MSRResNet: unknown key 'network'; valid: 'num_in_ch', 'num_out_ch'",
    ),
    "wandb without TensorBoard": (
        {"logger__wandb": {"project": "sr"}},
        "logger: wandb: project: wandb follows TensorBoard; set use_tb_logger: true",
    ),
    "quantized network within": (
        {"network_g__network": {"type": "AdaBMNetwork"}},
        "network_g: network: type: AdaBMNetwork quantizes another network; name the architecture",
    ),
    "scale of another network": (
        {"scale": 3},
        "scale: 3: the network makes images 2 times as large; set scale: 2",
    ),
    "weights of another key": (
        {"path__param_key_g": "param"},
        "param_key_g: 'param' is no key of checkpoint tiny.pth; did you mean 'params'?",
    ),
    "model that doesn't quantize": (
        {"model_type": "SRModel"},
        "model_type: 'SRModel' doesn't quantize; AdaBMModel",
    ),
    "no network": ({"network_g__network": ...}, "network_g: network: type is missing"),
    "network of another kind": (
        {"network_g__network": {"type": "SpyNet"}},
        "SpyNet can't be quantized here: it estimates optical flow between two frames",
    ),
    "dataset type": (
        {"datasets__train__type": "CalibrationDatset"},
        "type: 'CalibrationDatset' is not registered; did you mean 'CalibrationDataset' or "
        "'ClipCalibrationDataset'?",
    ),
    "phase": (
        {"datasets": {"train": {}, "test": {}}},
        "datasets: test: valid when training: 'train', 'val'",
    ),
    "channels": ({"datasets__train__channels": 4}, "channels: 4 is not 1 (grey) or 3 (RGB)"),
    "grey images for an RGB network": (
        {"datasets__train__channels": 1},
        "channels: 1, but the network takes 3 channels",
    ),
    "calibration batch": (
        {"train__calibration_batch_size": 0},
        "calibration_batch_size: 0 is not a positive whole",
    ),
    "validation data key": (
        {
            "datasets__val": {
                "name": "a",
                "type": "SingleImageDataset",
                "dataroot_lq": "lr",
                "io_backnd": {},
            }
        },
        "datasets: val: unknown key 'io_backnd'; did you mean 'io_backend'?",
    ),
    "near folder": (
        {"datasets__train__dataroot_lq": "l"},
        "folder l does not exist; did you mean 'lr'?",
    ),
    "near checkpoint": (
        {"path__pretrain_network_g": "tinny.pth"},
        "path: pretrain_network_g: checkpoint tinny.pth does not exist; did you mean 'tiny.pth'?",
    ),
    "validation key": ({"val": {"tiles": 64}}, "val: unknown key 'tiles'; did you mean 'tile'"),
    "tile": ({"val": {"tile": -1}}, "val: tile: -1 is not a whole number of at least 1"),
    "tile overlap": (
        {"val": {"tile": 40}},
        "val: tile_overlap: 16 is more than a third of the tile, 40",
    ),
    "overlap alone": ({"val": {"tile_overlap": 8}}, "val: tile_overlap is given, but no tile"),
    "name that leads out": (
        {"name": "../../x"},
        "name: '../../x' is not a name for files and folders, without '/'",
    ),
    "name in a folder": (
        {"name": "a/b"},
        "name: 'a/b' is not a name for files and folders, without '/'",
    ),
    "folder for a checkpoint": (
        {"path__pretrain_network_g": "lr"},
        "pretrain_network_g: checkpoint lr is a folder, not a file",
    ),
    "file for a folder": (
        {"datasets__train__dataroot_lq": "tiny.pth"},
        "dataroot_lq: folder tiny.pth is a file, not a folder",
    ),
    "absolute name": (
        {"name": "/x"},
        "name: '/x' is not a name for files and folders, without '/'",
    ),
    "folder made by BasicSR": ({"path__anything": "/x"}, "path: unknown key 'anything'"),
    "path no text": ({"path__pretrain_network_g": 3}, "path: pretrain_network_g: 3 is not a text"),
    "folder no text": (
        {"datasets__train__dataroot_lq": [1]},
        "datasets: train: dataroot_lq: [1] is not a text",
    ),
    "dataset no section": ({"datasets__train": 3}, "datasets: train: 3 is not a section of keys"),
    "prefetch mode unknown": (
        {"datasets__train__prefetch_mode": ""},
        "datasets: train: prefetch_mode: '' is not 'cpu' or 'cuda'",
    ),
    "prefetch to no GPU": (
        {"datasets__train__prefetch_mode": "cuda"},
        "datasets: train: prefetch_mode: 'cuda' needs a GPU (num_gpu) and pin_memory: true",
    ),
    "flag no flag": (
        {"datasets__train__use_rot": "yes"},
        "datasets: train: use_rot: 'yes' is not true or false",
    ),
    "seed no number": (
        {"datasets__train__seed": "x"},
        "datasets: train: seed: 'x' is not a whole number",
    ),
    "scale no number": ({"scale": 2.5}, "scale: 2.5 is not a positive whole number"),
    "network no section": (
        {"network_g__network": "EDSR"},
        "network_g: network: 'EDSR' is not a section of keys",
    ),
    "patterns no list": ({"network_g__exclude": 3}, "exclude: 3 is not a list of patterns"),
    "recipe a mapping": (
        {"network_g__recipe": {"a": 1}},
        "recipe: unknown value {'a': 1}; valid: 'paper'",
    ),
    "huge patches": (
        {"datasets__train__lq_size": 10**6},
        "lq_size: 1000000: patches have more pixels than max_pixels",
    ),
    "huge network": (
        {"network_g__network__num_feat": 10**9},
        "network_g: network: EDSR cannot be built from {num_in_ch: 3, num_out_ch: 3, num_feat",
    ),
    "architecture's option of another kind": (
        {"network_g__network__num_block": "x"},
        "network_g: network: EDSR: num_block: 'x' is not of the kind of 16, its default",
    ),
    "pixel limit": (
        {"datasets__train__max_pixels": 0},
        "max_pixels: 0 is out of range; valid: 1 to 1073741824",
    ),
    "small pixel limit": (
        {"datasets__train__max_pixels": 600},
        "has 48x40 pixels, more than max_pixels 600 allows",
    ),
    "backend": (
        {"datasets__train__io_backend": {"type": "memcached", "sys_path": "x"}},
        "datasets: train: io_backend: type: unknown value 'memcached'; valid: 'disk', 'lmdb'",
    ),
    "no LMDB": (
        {"datasets__train__io_backend": {"type": "lmdb"}},
        "meta info file lr/meta_info.txt does not exist",
    ),
    "meta info": (
        {"datasets__train__meta_info_file": "gone.txt"},
        "meta info file gone.txt does not exist",
    ),
}


@pytest.fixture
def run_fails(workspace, capsys, monkeypatch):
    """Run a command and return the one line that it fails with; earlier results stay in place."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def run(*flags, command=workspace.train, **changes):
        for folder in RESULTS:
            (workspace.root / folder / "tiny" / "earlier").mkdir(parents=True, exist_ok=True)
        before = results()
        with pytest.raises(SystemExit) as stopped:
            command(*flags, **changes)
        assert stopped.value.code == 2
        assert results() == before
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("adabm-basicsr: error: ")
        return error

    def results():
        return sorted(p for folder in RESULTS for p in Path(folder).rglob("*"))

    return run


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_mistake_in_training_options(run_fails, workspace, mistake):
    (workspace.root / "empty").mkdir()
    changes, message = TRAIN_MISTAKES[mistake]
    assert message in run_fails(**changes)


def test_no_option_file_given(capsys):
    from adabm_basicsr.train import main

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "the following arguments are required: -opt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("name: [1,", "is not valid YAML: "),
        ("name: a\n  b: c", "line 2, column 4 is not valid YAML: "),
        ("just words", "holds no keys"),
        ("x: !!python/object/apply:os.getcwd []", "is not valid YAML: "),
    ],
)
def test_broken_option_file(workspace, capsys, content, message):
    from adabm_basicsr.train import main

    path = workspace.root / "gone.yml" if content is None else workspace.write(content)
    with pytest.raises(SystemExit):
        main(["-opt", str(path)])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train", "--force_yml: 'train' is not of the form KEY:KEY=VALUE"),
        ("trian:total_iter=3", "there is no section 'trian'; did you mean 'train'?"),
        ("train:total_iter=[", "the value is not valid YAML"),
        (
            "train:total_iter=__import__('os').getcwd()",
            "total_iter: \"__import__('os').getcwd()\" is not a whole",
        ),
    ],
)
def test_bad_override(run_fails, override, message):
    assert message in run_fails("--force_yml", override)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated"])
def test_corrupt_checkpoint(run_fails, workspace, content):
    path = workspace.root / "tiny.pth"
    path.write_bytes(path.read_bytes()[:1000] if content == "truncated" else content)
    assert "checkpoint tiny.pth cannot be read (corrupt, or no PyTorch checkpoint)" in run_fails()


def test_checkpoint_with_code_is_not_run(run_fails, workspace):
    class Evil:
        def __reduce__(self):
            return (open, (str(workspace.root / "hacked"), "w"))

    torch.save({"params": Evil()}, workspace.root / "tiny.pth")
    assert "cannot be read" in run_fails()
    assert not (workspace.root / "hacked").exists()


def test_checkpoint_of_another_width(run_fails):
    error = run_fails(network_g__network__num_feat=16)
    assert "doesn't fit EDSR" in error
    assert "conv_first.weight is (8, 3, 3, 3) instead of (16, 3, 3, 3)" in error


def test_checkpoint_of_another_depth(run_fails):
    error = run_fails(network_g__network__num_block=3)
    assert (
        "4 missing (body.2.conv1.weight, body.2.conv1.bias, body.2.conv2.weight, body.2.conv2.bias)"
        in error
    )


def edvr(workspace):
    """Options of an EDVR, whose weights are written."""
    from basicsr.archs import build_network

    network = {"type": "EDVR", "num_feat": 4, "deformable_groups": 1, "num_reconstruct_block": 1}
    torch.save({"params": build_network(dict(network)).state_dict()}, workspace.root / "edvr.pth")
    return {"network_g__network": network, "path__pretrain_network_g": "edvr.pth"}


def clips(workspace):
    """Options of clips to calibrate on, which are written."""
    write_clips(workspace.root / "clips", 1, 4)
    dataset = {"name": "Clips", "type": "ClipCalibrationDataset", "dataroot_lq": "clips"}
    read = {"lq_size": 16, "num_frame": 3, "batch_size_per_gpu": 1, "num_worker_per_gpu": 0}
    return {"datasets__train": {**dataset, **read}}


def test_network_that_takes_clips(run_fails, workspace):
    assert run_fails(**edvr(workspace)).endswith(
        "datasets: train: type: CalibrationDataset, but EDVR takes clips; choose "
        "ClipCalibrationDataset"
    )


def test_clips_for_a_network_that_takes_images(run_fails, workspace):
    assert run_fails(**clips(workspace)).endswith(
        "datasets: train: type: ClipCalibrationDataset, but EDSR takes images; choose "
        "CalibrationDataset"
    )


def test_clips_of_another_length_than_the_window(run_fails, workspace):
    error = run_fails(**edvr(workspace), **clips(workspace))
    assert error.endswith("datasets: train: num_frame: 3, but EDVR takes 5 frames")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lq_size": 16}, "lq_size: 16, but Demanding takes frames of at least 20x20 pixels"),
        ({"lq_size": 24, "num_frame": 2}, "num_frame: 2, but Demanding takes clips of at least 3"),
        ({"lq_size": 24, "batch_size_per_gpu": 2}, "1 clip can't fill a batch; raise dataset_enl"),
    ],
)
def test_stretches_that_are_too_small_or_too_few(run_fails, workspace, changes, text):
    torch.save({"params": Demanding().state_dict()}, workspace.root / "demanding.pth")
    options = clips(workspace)
    options["datasets__train"].update(changes)
    error = run_fails(
        scale=4,
        network_g__network={"type": "Demanding"},
        path__pretrain_network_g="demanding.pth",
        **options,
    )
    assert f"datasets: train: {text}" in error


def clips_with_truth(workspace, **options):
    """Options of a validation set of clips, x4, which are written."""
    root = workspace.root
    prepare_clips([write_clips(root / "hr", 1, 5, 32, 32)], 4, root / "film/lq", root / "film/gt")
    roots = {"dataroot_lq": "film/lq", "dataroot_gt": "film/gt"}
    return {"name": "Film", "type": "VideoTestDataset", "num_frame": 5, **roots, **options}


def test_validation_images_for_a_network_that_takes_clips(run_fails, workspace):
    error = run_fails(**edvr(workspace), datasets__val=workspace.test_options()["datasets"]["test"])
    assert error.endswith(
        "datasets: val: type: PairedImageDataset gives images, but EDVR takes clips; choose "
        "VideoTestDataset, VideoTestDUFDataset or VideoTestVimeo90KDataset"
    )


def test_validation_clips_for_a_network_that_takes_images(run_fails, workspace):
    upscale = {"scale": 4, "network_g__network__upscale": 4, "path__pretrain_network_g": ...}
    error = run_fails(datasets__val=clips_with_truth(workspace), **upscale)
    assert error.endswith(
        "datasets: val: type: VideoTestDataset gives clips, but EDSR takes images; choose "
        "PairedImageDataset or SingleImageDataset"
    )


def test_whole_clips_to_validate_a_network_that_takes_windows(run_fails, workspace):
    whole = clips_with_truth(workspace, type="VideoRecurrentTestDataset")
    error = run_fails(scale=4, **edvr(workspace), datasets__val=whole)
    assert (
        "datasets: val: type: VideoRecurrentTestDataset gives whole clips, but EDVR takes windows "
        "of 5 frames; choose VideoTestDataset," in error
    )


def test_windows_of_another_length_to_validate_on(run_fails, workspace):
    shorter = clips_with_truth(workspace, num_frame=3)
    error = run_fails(scale=4, **edvr(workspace), datasets__val=shorter)
    assert error.endswith("datasets: val: num_frame: 3, but EDVR takes 5 frames")


def test_frames_to_validate_on_that_are_too_small(run_fails, workspace):
    torch.save({"params": Demanding().state_dict()}, workspace.root / "demanding.pth")
    error = run_fails(
        scale=4,
        network_g__network={"type": "Demanding"},
        path__pretrain_network_g="demanding.pth",
        datasets__val=clips_with_truth(workspace),
    )
    assert error.endswith(
        "datasets: frames to validate on are as small as 8x8 pixels, but Demanding takes frames of "
        "at least 20x20 pixels"
    )


def test_nan_in_weights(run_fails, workspace, tiny):
    tiny.conv_last.weight.data[0, 0, 0, 0] = float("nan")
    torch.save({"params": tiny.state_dict()}, workspace.root / "tiny.pth")
    assert "checkpoint tiny.pth: conv_last.weight holds NaN or infinite values" in run_fails()


def test_broken_calibration_image(run_fails, workspace):
    (workspace.root / "lr" / "img_003.png").write_bytes(b"\x89PNG no more")
    assert "img_003.png is broken or of an unknown format" in run_fails()


def test_nan_in_calibration_image(run_fails, workspace):
    import cv2

    image = np.full((40, 48, 3), 0.5, np.float32)
    image[3, 4] = np.nan
    cv2.imwrite(str(workspace.root / "lr" / "img_009.tiff"), image)
    assert "img_009.tiff holds NaN or infinite values" in run_fails()


def test_broken_validation_image(run_fails, workspace):
    workspace.train()
    image = workspace.root / "val" / "lq" / "img_001.png"
    image.write_bytes(image.read_bytes()[:60])
    assert "img_001.png is broken or of an unknown format" in run_fails(command=workspace.test)


def test_stray_file_in_validation_folder(run_fails, workspace):
    workspace.train()
    (workspace.root / "val" / "gt" / "notes.txt").write_text("x")
    assert "notes.txt is not an image" in run_fails(command=workspace.test)


def test_quantized_checkpoint_of_other_bits(run_fails, workspace):
    workspace.train()
    error = run_fails(command=workspace.test, network_g__w_bits=6)
    assert (
        "quantized with other options: body.0.conv1 has w_bits 4, a_bits 4, adaptive; the options "
        "say w_bits 6" in error
    )


def test_quantized_checkpoint_of_another_recipe(run_fails, workspace):
    workspace.train()
    error = run_fails(command=workspace.test, network_g__recipe="static")
    assert (
        "quantized with other options: body.0.conv1 has w_bits 4, a_bits 4, adaptive; the options "
        "say w_bits 4, a_bits 4" in error
    )


def test_quantized_checkpoint_whose_images_use_other_bits(run_fails, workspace):
    workspace.train(network_g__recipe="fast", network_g__ingredients={"image_bits": [-1, 0]})
    error = run_fails(command=workspace.test, network_g__recipe="fast")
    assert (
        "quantized with other options: it has image_bits [-1, 0], the options [0, 0]; write "
        "ingredients: {image_bits: [-1, 0]} under network_g to take it as it is" in error
    )


def test_quantized_checkpoint_of_other_layers(run_fails, workspace):
    workspace.train(network_g__fully_quantized=True)
    error = run_fails(command=workspace.test, network_g__fully_quantized=False)
    assert (
        "it has 8 quantized layers, the options give 4; the same fully_quantized, exclude" in error
    )


def test_a_recipe_that_makes_the_same_layers_is_reported_and_noted(workspace, capsys):
    workspace.train(network_g__recipe="fast", train__total_iter=0)
    workspace.test(network_g__recipe="best")
    message = (
        "network_g: recipe: best, but experiments/tiny/models/net_g_latest.pth was made with fast"
    )
    assert message in capsys.readouterr().err
    assert read_record(Path("results/tiny_test"))["recipe"] == "fast"


def test_plain_checkpoint_cannot_be_tested_quantized(run_fails, workspace):
    error = run_fails(command=workspace.test, path__pretrain_network_g="tiny.pth")
    assert "calibrate it (train), or load a quantized checkpoint" in error


def test_meta_info_outside_the_folder(run_fails, workspace):
    (workspace.root / "meta.txt").write_text("../tiny.pth (1,1,3)\n")
    assert "lies outside the data root lr" in run_fails(datasets__train__meta_info_file="meta.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val__metrics__psnr__type": "calculate_pnsr"},
            "type: 'calculate_pnsr' is not registered; did you mean 'calc",
        ),
        ({"datasets__test__dataroot_gt": ...}, "datasets: test: dataroot_gt is missing"),
        ({"datasets__test__dataroot_gt": "a" * 300}, "aaa does not exist"),
        (
            {"datasets__test__type": "SingleImageDataset"},
            "datasets: test: dataroot_gt: a SingleImageDataset has no ground truth; Paired",
        ),
        ({"scale": 4}, "is less than 4 (scale) times as large as"),
        ({"scale": 1}, "scale: 1: the network makes images 2 times as large; set scale: 2"),
        ({"scale": ...}, "datasets: test: scale is missing from the option file"),
        ({"val__suffix": "../x"}, "val: suffix: '../x' is not part of a file's name"),
        (
            {"val__metrics__psnr": {"type": "calculate_psnr", "crop_boarder": 2}},
            "val: metrics: psnr: unknown key 'crop_boarder'; did you mean 'crop_border'",
        ),
        (
            {"val__metrics__psnr__test_y_channel": "yess"},
            "psnr: test_y_channel: 'yess' is not true or false",
        ),
        (
            {"val__metrics__psnr__crop_border": "2"},
            "val: metrics: psnr: with crop_border '2', test_y_channel True",
        ),
        ({"val__metrics__psnr__crop_border": 24}, "it gives nan on an image of 48x48 pixels"),
        (
            {"datasets__test__filename_tmpl": "{}x2"},
            "image val/lq/img_000x2.png cannot be read: No such file",
        ),
        (
            {"datasets__test__io_backend": {"type": "lmdb"}},
            "datasets: test: dataroot_lq: val/lq must end in .lmdb",
        ),
        (
            {"datasets__test__name": "../x"},
            "datasets: test: name: '../x' is not a name for files and folders",
        ),
        (
            {
                "datasets__test_2": {
                    "name": "Val",
                    "type": "SingleImageDataset",
                    "dataroot_lq": "lr",
                }
            },
            "datasets: test_2: name: 'Val' is that of test too; give each its own",
        ),
    ],
)
def test_mistake_in_test_options(run_fails, workspace, changes, message):
    workspace.train()
    assert message in run_fails(command=workspace.test, **changes)


TOO_LONG = "a" * 300


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "-opt", TOO_LONG],
        ["export", "-m", TOO_LONG],
        ["upscale", "-m", TOO_LONG, "-i", "lr", "-o", "out"],
        ["prepare", "--hr", "lr", "--scale", "2", "--out", TOO_LONG],
        ["compare", TOO_LONG],
        ["report", TOO_LONG],
        ["inspect", TOO_LONG],
    ],
    ids=lambda argv: argv[0],
)
def test_names_that_no_file_can_have(workspace, capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert re.match(f"adabm-basicsr: error: .*{TOO_LONG}.*\n$", capsys.readouterr().err)


def test_unequal_folders(run_fails, workspace):
    workspace.train()
    (workspace.root / "val" / "lq" / "img_001.png").unlink()
    error = run_fails(command=workspace.test)
    assert "datasets: test: dataroot_lq holds 1 image, dataroot_gt 2" in error


def test_corrupt_training_state(run_fails, workspace):
    workspace.train()
    (workspace.root / "experiments/tiny/training_states/12.state").write_bytes(b"no")
    error = run_fails("--auto_resume")
    assert "12.state cannot be read (corrupt, or no PyTorch checkpoint)" in error
    assert "delete that file and --auto_resume takes the one before" in error


def test_float_image_beyond_one(run_fails, workspace):
    import cv2

    cv2.imwrite(str(workspace.root / "lr" / "img_009.tiff"), np.full((40, 48, 3), 200, np.float32))
    assert "img_009.tiff has float values outside 0..1" in run_fails()


def test_a_checkpoint_that_holds_code_gives_no_unsafe_advice(run_fails, workspace):
    torch.save({"params": RESULTS, "code": Path}, workspace.root / "tiny.pth")
    error = run_fails()
    assert "tiny.pth cannot be read" in error
    assert "something else than tensors" in error
    assert "weights_only" not in error


@pytest.mark.parametrize(
    ("step", "flags", "message"),
    [
        (
            "_calibrate",
            (),
            " before a training state was saved: run it again",
        ),  # the earlier run's doesn't count
        (
            "optimize_parameters",
            (),
            "; --auto_resume goes on from experiments/tiny/training_states/0.state",
        ),
        ("_calibrate", ("--auto_resume",), None),  # it isn't calibrated again
        (
            "optimize_parameters",
            ("--auto_resume",),
            "; --auto_resume goes on from experiments/tiny/training_states/6",
        ),
    ],
)
def test_ctrl_c_says_what_can_be_continued(step, flags, message, workspace, monkeypatch, capsys):
    workspace.train(logger__save_checkpoint_freq=6, train__total_iter=6)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adabm_basicsr.models.adabm_model.AdaBMModel.{step}", interrupted)
    if message is None:
        workspace.train(*flags)
        return
    with pytest.raises(SystemExit) as stopped:
        workspace.train(*flags)
    assert stopped.value.code == 130
    assert f"adabm-basicsr: interrupted{message}" in capsys.readouterr().err.splitlines()[-1]


def test_auto_resume_without_a_state_is_reported(workspace, capsys):
    workspace.train("--auto_resume", train__total_iter=2)
    assert "--auto_resume: " in capsys.readouterr().err
    workspace.train("--auto_resume", train__total_iter=4)
    assert "--auto_resume: " not in capsys.readouterr().err


def test_fine_tuning_that_does_harm_is_a_warning(workspace, capsys):
    workspace.train(train__total_iter=2)
    assert "Fine-tuning took the loss" not in capsys.readouterr().err
    rates = {"learning_rates": {"activation_range": 10.0, "weight_range": 10.0}}
    workspace.train(train__total_iter=2, train__finetune=rates)
    error = capsys.readouterr().err
    assert "Fine-tuning took the loss from" in error
    assert "it diverged; lower the rates (train: finetune: learning_rates)" in error


def test_fine_tuning_that_does_harm_is_taken_back(workspace, capsys):
    rates = {"learning_rates": {"activation_range": 1.0, "weight_correction": 3.0, "bias": 3.0}}
    workspace.train(
        train__total_iter=6,
        train__finetune=rates,
        network_g__recipe="fast",
        network_g__w_bits=8,
        network_g__a_bits=8,
    )
    output = capsys.readouterr()
    assert "Back to the calibrated state, as fine-tuning gained nothing" in output.out + output.err
    assert "Fine-tuning took the loss" not in output.err


def test_a_module_that_fails_on_import(run_fails, workspace, monkeypatch):
    monkeypatch.syspath_prepend(workspace.root)
    (workspace.root / "broken_archs.py").write_text("undefined\n")
    error = run_fails(network_g__custom_imports=["broken_archs"])
    assert (
        "custom_imports: cannot import 'broken_archs': NameError: name 'undefined' is not defined"
        in error
    )


@pytest.mark.parametrize("typo", ["studio.arch", "stduio.archs"])
def test_a_module_that_is_missing_has_near_misses(run_fails, workspace, monkeypatch, typo):
    monkeypatch.chdir(workspace.root)
    (workspace.root / "studio").mkdir()
    (workspace.root / "studio" / "archs.py").write_text("")
    error = run_fails(network_g__custom_imports=[typo])
    nearest = "studio" if typo.endswith("archs") else "studio.archs"
    assert f"cannot import '{typo}': No module named" in error
    assert f"did you mean '{nearest}'?" in error


def test_a_broken_checkpoint_leaves_earlier_results_in_place(run_fails, workspace):
    workspace.train()
    workspace.test()
    (workspace.root / "net.pth").write_bytes((workspace.root / "tiny.pth").read_bytes()[:5000])
    assert "net.pth cannot be read" in run_fails(
        command=workspace.test, path__pretrain_network_g="net.pth"
    )


def test_basicsrs_own_models_load_weights_alone(run_fails, workspace):
    class Evil:
        def __reduce__(self):
            return (open, (str(workspace.root / "hacked"), "w"))

    torch.save({"params": {"a": torch.zeros(1), "b": Evil()}}, workspace.root / "evil.pth")
    changes = {
        "model_type": "SRModel",
        "network_g": {**TINY_EDSR},
        "path__pretrain_network_g": "evil.pth",
    }
    assert "evil.pth cannot be read" in run_fails(command=workspace.test, **changes)
    assert not (workspace.root / "hacked").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ  # as it was


def test_folders_that_cannot_be_made(workspace, capsys):
    (workspace.root / "experiments").write_text("a file")
    with pytest.raises(SystemExit):
        workspace.train()
    assert "error: cannot write to experiments: File exists" in capsys.readouterr().err


def test_a_mistake_leaves_earlier_results_in_place(run_fails, workspace):
    workspace.train()
    run_fails(network_g__network__num_blocks=3)


def test_empty_keys_mean_the_default(workspace):
    empty = {"network_g__exclude": None, "network_g__custom_imports": None, "train__finetune": None}
    workspace.train(**empty, datasets__train__io_backend=None)


def test_a_metric_without_options_is_left_out(workspace):
    workspace.train(train__total_iter=0)
    workspace.test(val__metrics__psnr=None)
    assert Path("results/tiny_test").is_dir()
