"""The whole way under BasicSR's pipelines, on a tiny network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from adabm_basicsr import load_checkpoint, quantize
from adabm_basicsr.quantization.finetuning.teacher import Teacher

CHECKPOINT = "experiments/tiny/models/net_g_latest.pth"


def read_log(folder):
    return max(Path(folder).glob("*.log"), key=lambda path: path.stat().st_mtime).read_text()


def logged(text, metric):
    return [float(value) for value in re.findall(rf"# {metric}: ([\d.e+]+)", text)]


def with_validation(workspace):
    return {
        **workspace.train_options()["datasets"],
        "val": dict(workspace.test_options()["datasets"]["test"]),
    }


def state(path):
    return torch.load(path, weights_only=True)["params"]


def assert_same_state(path, other):
    first, second = state(path), state(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("fixed", "computed"), [(None, 5 + 12), (False, 5 + 28)]
)  # five to begin with
def test_full_precision_of_fixed_crops_is_computed_once(workspace, monkeypatch, fixed, computed):
    images = []
    original = Teacher._compute
    monkeypatch.setattr(
        Teacher,
        "_compute",
        lambda self, x, forward: images.append(len(x)) or original(self, x, forward),
    )
    datasets = workspace.train_options()["datasets"]
    datasets["train"]["fixed_crops"] = fixed  # None: the recipe's own
    workspace.train(datasets=datasets, network_g={**workspace.network_options(), "recipe": "best"})
    assert (
        sum(images) == computed
    )  # three epochs of eight patches, and four that losses are measured on


def test_train_then_test(workspace):
    workspace.train(
        datasets=with_validation(workspace), val={**workspace.test_options()["val"], "val_freq": 6}
    )
    log = read_log("experiments/tiny")
    assert "Calibrated on 8 patches" in log
    assert "conv_after_body  trunk end" in log
    assert "average bits (FAB)" in log
    for phase, iteration in (("weight ranges", 1), ("activation ranges", 5), ("bit mappings", 9)):
        assert f"Fine-tuning {phase} from iteration {iteration}" in log
    assert len(logged(log, "fab")) == len(logged(log, "psnr")) == 3
    for name in ("net_g_6.pth", "net_g_12.pth", "net_g_latest.pth"):
        assert (workspace.root / "experiments/tiny/models" / name).is_file()
    metrics = json.loads(Path("experiments/tiny/metrics.json").read_text())["Val"]
    assert metrics["psnr"] == pytest.approx(logged(log, "psnr")[-1], abs=1e-4)
    assert metrics["fab"] == pytest.approx(logged(log, "fab")[-1], abs=1e-4)

    workspace.test()
    tested = json.loads(Path("results/tiny_test/metrics.json").read_text())["Val"]
    assert tested == pytest.approx(metrics)


def test_validation_in_tiles(workspace):
    """Images whole, the same in tiles that hold them, and in tiles that don't, with own bits."""
    workspace.train()
    measured = {}
    for tile in (None, 64, 12):
        val = workspace.test_options()["val"]
        name = f"tiles_{tile}"
        workspace.test(
            name=name, val={**val, "tile": tile, **({"tile_overlap": 4} if tile else {})}
        )
        measured[tile] = json.loads(Path(f"results/{name}/metrics.json").read_text())["Val"]
    assert measured[64] == pytest.approx(measured[None])
    assert 0 < abs(measured[12]["psnr"] - measured[None]["psnr"]) < 1
    assert measured[12]["bitops"] > measured[None]["bitops"]  # overlaps are computed twice
    assert 3 <= measured[12]["fab"] <= 5


def test_static_recipe_needs_no_iterations(workspace):
    workspace.train(network_g__recipe="static", train__total_iter=0)
    workspace.test(network_g__recipe="static")
    assert json.loads(Path("results/tiny_test/metrics.json").read_text())["Val"]["fab"] == 4


def test_same_seed_same_checkpoint_other_seed_another(workspace):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        workspace.train(name=name, manual_seed=seed)
    assert_same_state(
        "experiments/a/models/net_g_latest.pth", "experiments/b/models/net_g_latest.pth"
    )
    with pytest.raises(AssertionError):
        assert_same_state(
            "experiments/a/models/net_g_latest.pth", "experiments/c/models/net_g_latest.pth"
        )


@pytest.mark.parametrize("saved_at", [3, 4, 6])  # in the middle of an epoch and at its end
def test_resumed_run_ends_where_an_uninterrupted_one_does(workspace, saved_at):
    workspace.train(name="whole", logger__save_checkpoint_freq=saved_at)
    shutil.copytree("experiments/whole", "experiments/cut")
    for path in [
        *Path("experiments/cut/training_states").iterdir(),
        *Path("experiments/cut/models").iterdir(),
    ]:
        if path.stem not in (str(saved_at), f"net_g_{saved_at}"):
            path.unlink()
    workspace.train("--auto_resume", name="cut", logger__save_checkpoint_freq=saved_at)
    assert f"iter: {saved_at}." in read_log("experiments/cut")
    assert "Calibrated" not in read_log("experiments/cut")
    assert_same_state(
        "experiments/whole/models/net_g_latest.pth", "experiments/cut/models/net_g_latest.pth"
    )


def test_all_iterations_are_made_where_batches_do_not_come_out_even(workspace):
    workspace.train(datasets__train__num_images=5, train__total_iter=31, logger__print_freq=1)
    assert "iter:      31" in read_log("experiments/tiny")


def test_debug_flag_and_overrides(workspace):
    workspace.train("--debug", "--force_yml", "train:total_iter=3", "manual_seed=5")
    log = read_log("experiments/debug_tiny")
    assert "iter:       3" in log
    assert "manual_seed: 5" in log


def test_debug_without_validation(workspace):
    workspace.train("--debug", val=None)
    assert "End of training" in read_log("experiments/debug_tiny")


def test_several_rounds_of_patches(workspace):
    workspace.train(datasets__train__dataset_enlarge_ratio=2)
    log = read_log("experiments/tiny")
    assert "Calibrated on 16 patches" in log
    assert "Fine-tuning activation ranges from iteration 9" in log


def test_validation_without_ground_truth(workspace):
    workspace.train()
    datasets = {
        "test": {
            "name": "Wild",
            "type": "SingleImageDataset",
            "dataroot_lq": "val/lq",
            "io_backend": {"type": "disk"},
        }
    }
    workspace.test(
        datasets=datasets, val={**workspace.test_options()["val"], "save_img": True}
    )  # metrics are left out
    assert 3 <= logged(read_log("results/tiny_test"), "fab")[0] <= 5
    assert cv2.imread("results/tiny_test/visualization/Wild/img_000_tiny_test.png").shape == (
        48,
        64,
        3,
    )


def test_quantized_checkpoint_continues_without_calibration(workspace):
    workspace.train()
    workspace.train(name="again", path__pretrain_network_g=CHECKPOINT)
    assert "Calibrated" not in read_log("experiments/again")


def test_grey_network(workspace):
    from basicsr.archs import build_network

    network = {
        "type": "SRVGGNetCompact",
        "num_in_ch": 1,
        "num_out_ch": 1,
        "num_feat": 8,
        "num_conv": 3,
        "upscale": 2,
    }
    torch.save({"params": build_network(dict(network)).state_dict()}, "tiny.pth")
    workspace.train(network_g__network=network, datasets__train__channels=1)
    assert "Calibrated on 8 patches" in read_log("experiments/tiny")


def test_tensorboard_scalars(workspace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workspace.train(
        datasets=with_validation(workspace),
        val={**workspace.test_options()["val"], "val_freq": 12},
        logger__use_tb_logger=True,
    )
    events = EventAccumulator("tb_logger/tiny")
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"losses/l_pix", "losses/l_feat", "losses/l_bit", "fab", "phase"} <= set(tags)
    assert {"metrics/Val/psnr", "metrics/Val/fab", "bits/body.0.conv1"} <= set(tags)
    sets = {"Val", "Calibration"}  # the latter is all that a run without validation has
    assert {"bits of layers", *(f"bits of images/{name}" for name in sets)} == set(
        events.Tags()["histograms"]
    )
    assert {"bits of layers", *(f"bit map/{name}" for name in sets)} == set(events.Tags()["images"])
    assert [event.step for event in events.Scalars("bits/body.0.conv1")] == [0, 4, 8, 12]
    assert events.Histograms("bits of layers")[-1].histogram_value.num == 8
    assert events.Histograms("bits of images/Calibration")[-1].histogram_value.num == 8


def test_wandb_follows_tensorboard(workspace, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = {"use_tb_logger": True, "wandb": {"project": "tiny", "resume_id": None}}
    workspace.train(logger={**workspace.train_options()["logger"], **logger})
    assert "Use wandb logger with id=" in read_log("experiments/tiny")
    assert list(Path("wandb").glob("offline-run-*/run-*.wandb"))


def test_pictures_of_an_interrupted_run_are_made_anew(workspace):
    workspace.train()
    kept = Path("experiments/tiny/pictures/Val/static")
    kept.mkdir(parents=True)
    workspace.train("--auto_resume", train__total_iter=16)
    assert not kept.exists()
    record = json.loads(Path("experiments/tiny/run.json").read_text())
    assert [phase["name"] for phase in record["phases"]][-2:] == [
        "Fine-tuning bit mappings, iterations 9 to 12",
        "Fine-tuning weight ranges, iterations 13 to 16",
    ]


def test_layers_without_quantized_inputs_are_counted(workspace):
    network = {**workspace.network_options(), "layers": {"body.0.*": {"a_bits": 32}}}
    workspace.train(network_g=network)
    workspace.test(network_g=network)
    metrics = json.loads(Path("results/tiny_test/metrics.json").read_text())["Val"]
    rows = json.loads(Path("experiments/tiny/run.json").read_text())["layers"]
    assert [row["a_bits"] for row in rows if row["name"].startswith("body.0")] == [32, 32]
    image = json.loads(Path("results/tiny_test/run.json").read_text())["sets"]["Val"]["images"][0]
    assert 0 < metrics["bitops"] < image["float_bitops"]


def python_api_psnr(workspace, tiny):
    """Mean PSNR over the validation set by the Python API alone, Y channel, border 2."""
    from basicsr.metrics import calculate_psnr
    from basicsr.utils import img2tensor, tensor2img

    net = quantize(tiny, torch.zeros(1, 3, 24, 24), fully_quantized=True, recipe="paper")
    load_checkpoint(net, CHECKPOINT)
    values = []
    for name in ("img_000.png", "img_001.png"):
        lq = img2tensor(cv2.imread(f"val/lq/{name}").astype(np.float32) / 255)[None]
        with torch.no_grad():
            sr = tensor2img(net(lq))
        values.append(
            calculate_psnr(sr, cv2.imread(f"val/gt/{name}"), crop_border=2, test_y_channel=True)
        )
    return np.mean(values)


@pytest.fixture
def autoload():
    """BasicSR's own entry points find the plugin while a test runs, as after `autoload on`."""
    from adabm_basicsr.commands.autoload import autoload_path, main

    was_on = autoload_path().is_file()
    main(["on"])
    yield
    if not was_on:
        main(["off"])


def run_module(module, options, *flags):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSTARTUP"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-W", "ignore", "-m", module, "-opt", str(options), *flags]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_same_psnr_by_every_way(workspace, tiny, autoload):
    workspace.train()
    workspace.test()
    ours = logged(read_log("results/tiny_test"), "psnr")[0]
    workspace.test(name="by_srmodel", model_type="SRModel")
    by_srmodel = logged(read_log("results/by_srmodel"), "psnr")[0]
    run_module("basicsr.test", workspace.write(workspace.test_options(name="by_basicsr")))
    by_basicsr = logged(read_log("results/by_basicsr"), "psnr")[0]
    assert (
        ours
        == by_srmodel
        == by_basicsr
        == pytest.approx(python_api_psnr(workspace, tiny), abs=1e-4)
    )


# By default test_interruptions resumes within this process.
@pytest.mark.slow
def test_basicsr_trains_and_resumes_with_autoload(workspace, autoload):
    options = workspace.train_options()
    options["train"]["total_iter"] = 6
    run_module("basicsr.train", workspace.write(options))
    options["train"]["total_iter"] = 12
    run_module("basicsr.train", workspace.write(options), "--auto_resume")
    workspace.train(name="whole")
    assert_same_state(CHECKPOINT, "experiments/whole/models/net_g_latest.pth")


# By default test_interruptions has such a script in this process, test_described one that tests.
@pytest.mark.slow
def test_own_training_script(workspace):
    options = workspace.write(workspace.train_options())
    script = workspace.root / "train.py"
    script.write_text(
        "import os\nimport adabm_basicsr\nfrom basicsr.train import train_pipeline\n"
        "train_pipeline(os.getcwd())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, str(script), "-opt", str(options)],
        check=True,
        capture_output=True,
        env=environment,
    )
    assert (workspace.root / CHECKPOINT).is_file()


def test_option_files_survive_basicsrs_own_parser(workspace):
    """BasicSR's loader reads our YAML the same way as the safe one."""
    from basicsr.utils.options import ordered_yaml

    for path in (Path(__file__).parents[2] / "options").rglob("*.yml"):
        text = path.read_text()
        assert yaml.load(text, Loader=ordered_yaml()[0]) == yaml.safe_load(text)


def test_layers_in_float_for_a_target_are_reported_and_come_back(workspace):
    network = {"recipe": "fast", "target": {"self_psnr": 56}}
    options = {f"network_g__{key}": value for key, value in network.items()}
    workspace.train("--quiet", **options, train__total_iter=4)
    kept = json.loads(Path("experiments/tiny/run.json").read_text())["kept"]
    assert kept["layers"]
    assert kept["before"] < 56 <= kept["after"]
    report = Path("experiments/tiny/report/report.md").read_text()
    assert f"{kept['after']:.2f} dB" in report
    workspace.test("--quiet", **options)
    figures = json.loads(Path("results/tiny_test/report/report.json").read_text())
    assert figures["kept"] == kept


def test_target_of_psnr_drop_is_measured_on_the_validation_set(workspace):
    validation = workspace.test_options()["datasets"]["test"]
    workspace.train(
        "--quiet",
        datasets__val=validation,
        network_g__recipe="fast",
        network_g__target={"psnr_drop": 0.2},
        train__total_iter=2,
        val=None,
    )
    record = json.loads(Path("experiments/tiny/run.json").read_text())
    assert 2 <= record["reached"]["a_bits"] <= 8


@pytest.mark.slow
def test_images_in_full_precision_are_reported_and_come_back(workspace):
    network = {"recipe": "fast", "full_precision_images": 0.25}
    options = {f"network_g__{key}": value for key, value in network.items()}
    workspace.train("--quiet", **options, train__total_iter=4)
    kept = json.loads(Path("experiments/tiny/run.json").read_text())["kept"]
    assert kept["images_share"] == 0.25
    assert kept["before"] < kept["after"]
    report = Path("experiments/tiny/report/report.md").read_text()
    assert re.search(r"images kept in float, the most complex ones *\| *25\.0 %", report)
    workspace.test("--quiet", **options)
    figures = json.loads(Path("results/tiny_test/report/report.json").read_text())
    assert figures["kept"] == kept
    bits = [image["bits"] for image in figures["sets"]["Val"]["images"]]
    assert all(of_image == 32 or of_image <= 8 for of_image in bits)
