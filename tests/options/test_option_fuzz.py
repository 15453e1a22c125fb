"""Option files with random mistakes, through the command: a run, or one line on what is wrong."""

import copy
import datetime
import shutil

import pytest
from conftest import changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adabm_basicsr.commands.main import main

NAN, INF = float("nan"), float("inf")
# A wrong value for most options, a right one for some.
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    1.5,
    -0.5,
    NAN,
    INF,
    "",
    "x",
    "../x",
    "/x",
    "~",
    "~x",
    "a\0b",
    "a" * 300,
    "é\u2028x",
    [],
    [1],
    ["x"],
    [None],
    [[]],
    {},
    {"a": 1},
    {"type": 1},
    {"type": "x"},
    {"type": None},
    datetime.date(2024, 1, 1),
    "best",
    "lmdb",
    "memcached",
    "calculate_psnr",
    "EDSR",
    "PairedImageDataset",
    "SingleImageDataset",
    "MSRResNet",
]
KEYS = ["zzz", "type", "name", "name ", "", "io_backend", "train", "*", "phase", "scale", "metrics"]
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["delete", "replace", "replace", "add"]),
        st.sampled_from(VALUES),
    ),
    min_size=1,
    max_size=3,
)


def examples(count):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


def places(section, above=()):
    """Where each option stands: the keys that lead to it."""
    found = []
    for key, value in section.items() if isinstance(section, dict) else ():
        found += [(*above, key), *places(value, (*above, key))]
    return found


def spoiled(opt, changes):
    opt = copy.deepcopy(opt)
    for number, how, value in changes:
        found = places(opt)
        if not found:
            return opt
        *above, last = found[number % len(found)]
        section = opt
        for key in above:
            section = section[key]
        if how == "delete":
            del section[last]
        elif how == "replace":
            section[last] = copy.deepcopy(value)
        else:
            section[KEYS[number % len(KEYS)]] = copy.deepcopy(value)
    return opt


def train_options(workspace):
    """As many different options as there are, for a run that is over at once."""
    opt = workspace.train_options(
        train__total_iter=1, logger__print_freq=1, network_g__recipe="fast"
    )
    metrics = {
        "psnr": {
            "type": "calculate_psnr",
            "crop_border": 2,
            "test_y_channel": True,
            "better": "higher",
        }
    }
    dataset = {
        "name": "Val",
        "type": "PairedImageDataset",
        "dataroot_gt": "val/gt",
        "dataroot_lq": "val/lq",
    }
    opt["datasets"]["val"] = {**dataset, "filename_tmpl": "{}", "io_backend": {"type": "disk"}}
    opt["val"] = {"val_freq": 1, "save_img": True, "suffix": "x", "metrics": metrics, "pbar": False}
    opt["dist_params"] = {"backend": "nccl", "port": 29500}
    patterns = {
        "exclude": ["body.1.conv1"],
        "non_adaptive": [],
        "blocks": ["body.0"],
        "size_multiple": 1,
    }
    opt["network_g"].update(
        layers={"body.0.*": {"w_bits": 8}},
        ingredients={"iterations": 3},
        observer="omse",
        **patterns,
    )
    rates = {"activation_range": 0.002}
    opt["train"].update(
        calibration_batch_size=4,
        pbar=False,
        finetune={"learning_rates": rates, "lr_decay": 0.9, "feature_weight": 1},
    )
    return changed(opt, {f"datasets__train__{key}": value for key, value in CALIBRATION.items()})


CALIBRATION = {
    "num_images": 4,
    "use_hflip": True,
    "use_rot": False,
    "fixed_crops": True,
    "channels": 3,
    "seed": 3,
    "max_pixels": 10**6,
    "meta_info_file": None,
    "io_backend": {"type": "disk"},
    "pin_memory": False,
    "prefetch_mode": None,
    "num_prefetch_queue": 1,
    "persistent_workers": False,
}


@pytest.fixture
def fuzz(workspace, capsys):
    """Run a command with spoiled options and check that it ends in one of two ways."""
    main(["train", "-opt", str(workspace.write(train_options(workspace)))])
    shutil.copy("experiments/tiny/models/net_g_latest.pth", "quantized.pth")

    def run(command, changes):
        opt = train_options(workspace)
        if command == "test":
            opt = workspace.test_options(
                network_g=opt["network_g"], path__pretrain_network_g="quantized.pth"
            )
        for folder in ("experiments", "results", "tb_logger"):
            shutil.rmtree(folder, ignore_errors=True)
        capsys.readouterr()
        try:
            main([command, "-opt", str(workspace.write(spoiled(opt, changes)))])
        except SystemExit as stopped:
            code = stopped.code
        else:
            return
        assert code == 2
        last = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
        assert last.startswith("adabm-basicsr: error: ")

    return run


@pytest.mark.parametrize("command", ["train", "test"])
@given(changes=CHANGES)
@examples(40)
def test_spoiled_options_end_in_one_line_or_a_run(fuzz, command, changes):
    fuzz(command, changes)


@pytest.mark.fuzz
@pytest.mark.parametrize("command", ["train", "test"])
@given(changes=CHANGES)
@examples(500)
def test_many_spoiled_options_end_in_one_line_or_a_run(fuzz, command, changes):
    fuzz(command, changes)
