"""The table of options: what is made of it is current, and its checks agree with its schema."""

import json
import runpy
from pathlib import Path

import jsonschema
import pytest
from clip_files import write_clips
from conftest import changed

from adabm_basicsr import AdaBMError, FinetuneSettings, QuantizationConfig
from adabm_basicsr.data.calibration_dataset import CalibrationDataset, CalibrationOptions
from adabm_basicsr.data.clip_dataset import ClipCalibrationDataset, ClipOptions
from adabm_basicsr.data.patches import ADDED_KEYS, COMMON_KEYS
from adabm_basicsr.options import table
from adabm_basicsr.options.checks import check_section, check_table, fill_defaults
from adabm_basicsr.options.listing import format_text, list_options
from adabm_basicsr.options.schema import PATH
from adabm_basicsr.quantization.recipes import RELATIVE_RATES

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft7Validator(json.loads(PATH.read_text()))


@pytest.fixture(scope="module")
def generator():
    """``python docs/generate_options.py`` writes what these functions give."""
    return runpy.run_path(str(ROOT / "docs" / "generate_options.py"))


def test_schema_is_current(generator):
    assert PATH.read_text() == generator["render_schema"]()
    jsonschema.Draft7Validator.check_schema(json.loads(PATH.read_text()))


def test_documentation_is_current(generator):
    page = (ROOT / "docs" / "options.md").read_text()
    assert generator["render_page"](page) == page


def test_each_option_says_what_it_does_and_takes():
    for where, rows in list_options().items():
        for row in rows:
            assert row.values, (where, row.key)
            assert row.description.endswith((".", "...")), (where, row.key)
    text = format_text(list_options())
    assert "  lq_size\n    Side of the patches" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_methods_own_options_are_in_the_table():
    assert set(QuantizationConfig.__dataclass_fields__) < set(table.AdaBMNetwork.model_fields)
    finetune = table.Train.model_fields["finetune"].annotation
    assert set(FinetuneSettings.__dataclass_fields__) == set(finetune.model_fields)
    assert set(table.LearningRates.model_fields) == set(RELATIVE_RATES)


def test_the_calibration_dataset_takes_what_the_table_has(workspace):
    fields = set(table.CalibrationDataset.model_fields)
    assert fields == {*COMMON_KEYS, *CalibrationOptions.__dataclass_fields__}
    options = dict.fromkeys([*fields, *ADDED_KEYS])
    options.update(dataroot_lq="lr", lq_size=24)
    assert len(CalibrationDataset(options)) == 8


def test_the_dataset_of_clips_takes_what_the_table_has(workspace):
    fields = set(table.ClipCalibrationDataset.model_fields)
    assert fields == {*COMMON_KEYS, *ClipOptions.__dataclass_fields__}
    options = dict.fromkeys([*fields, *ADDED_KEYS])
    write_clips(workspace.root / "clips", 2, 3)
    options.update(dataroot_lq="clips", lq_size=24, num_frame=3)
    assert len(ClipCalibrationDataset(options)) == 2


def clip_options(**changes):
    of_clips = {"type": "ClipCalibrationDataset", "num_frame": 5}
    return {f"datasets__train__{key}": value for key, value in {**of_clips, **changes}.items()}


def test_defaults_are_those_of_the_table():
    val = {"save_img": None, "suffix": "x"}
    fill_defaults(table.Validation, val)
    assert set(val) == set(table.Validation.model_fields)
    assert (val["save_img"], val["suffix"], val["tile_overlap"]) == (False, "x", 16)


def rejected(opt):
    try:
        check_table(opt)
    except AdaBMError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"scale": None, "network_g__recipe": None, "train__finetune": None}, None),
        ({"train__total_iter": 5e3, "logger__print_freq": 1e2}, None),
        ({"train__total_iter": 1.5}, "train: total_iter: 1.5 is not a whole number of iterations"),
        ({"logger__print_freq": 0}, "logger: print_freq: 0 is not a whole number of iterations"),
        ({"num_gpu": True}, "num_gpu: True is not a number of GPUs; valid: auto, 0, 1, ..."),
        ({"num_gpu": "auto"}, None),
        ({"name": ["x"]}, "name: ['x'] is not a name for files and folders, without '/'"),
        ({"datasets__train__lq_siz": 3}, "datasets: train: unknown key 'lq_siz'; did you mean"),
        ({"datasets__train__channels": 2}, "datasets: train: channels: 2 is not 1 (grey) or 3"),
        ({"datasets__train__max_pixels": -1}, "max_pixels: -1 is out of range; valid: 1 to"),
        ({"datasets__train__seed": 1.5}, "datasets: train: seed: 1.5 is not a whole number"),
        ({"datasets__train__io_backend": 3}, "io_backend: 3 is not a section of keys"),
        ({"datasets__train__io_backend": {"type": "dsk"}}, "unknown value 'dsk'; did you mean"),
        ({"datasets__train__name": ...}, "datasets: train: name is missing"),
        ({"network_g__w_bits": 9}, "w_bits: 9 is out of range; valid: 2 to 8, or 32"),
        ({"network_g__exclude": "body"}, "exclude: 'body' is not a list of patterns"),
        ({"network_g__target": {"psnr": 3}}, "target: unknown key 'psnr'"),
        ({"network_g__custom_imports": [1]}, "custom_imports: [1] is not a list of texts"),
        ({"network_g__network__type": ...}, "network_g: network: type is missing"),
        ({"path__pretrain_network": "x"}, "path: unknown key 'pretrain_network'; did you mean"),
        (
            {"train__finetune": {"learning_rates": {"bias": -1}}},
            "train: finetune: learning_rates: bias: -1 is not a number of at least 0",
        ),
        ({"train__finetune": {"lr_decay": "x"}}, "lr_decay: 'x' is not a number of at least 0"),
        ({"val": {"metrics": {"psnr": 3}}}, "val: metrics: psnr: 3 is not a section of keys"),
        ({"val": {"metrics": {"psnr": {}}}}, "val: metrics: psnr: type is missing"),
        (clip_options(), None),
        (clip_options(num_frame=None), "datasets: train: num_frame is missing"),
        (clip_options(max_frames=0), "max_frames: 0 is not a positive whole number"),
        (
            clip_options(num_images=5),
            "datasets: train: unknown key 'num_images'; sets of type CalibrationDataset have it",
        ),
        (
            {"datasets__train__num_clips": 5},
            "datasets: train: unknown key 'num_clips'; sets of type ClipCalibrationDataset have it",
        ),
        ({"datasets__val": {"type": "VideoTestDataset"}}, "datasets: val: name is missing"),
        ({"logger__wandb": {"project": 3}}, "logger: wandb: project: 3 is not a text"),
    ],
)
def test_checks_and_schema_agree(workspace, changes, message):
    opt = changed(workspace.train_options(), changes)
    found = rejected(opt)
    if message is None:
        assert found is None
    else:
        assert message in found
    assert VALIDATOR.is_valid(opt) is (message is None)


def basicsr_options():
    """Of one of BasicSR's own models."""
    return {
        "name": "x",
        "model_type": "SRGANModel",
        "num_gpu": 0,
        "datasets": {"train": {"name": "x", "type": "REDSDataset", "num_frame": 5, "gt_size": 1.5}},
        "network_g": {"type": "EDSR", "num_in_ch": 3},
        "network_d": {"type": "VGGStyleDiscriminator"},
        "path": {"pretrain_network_d": "x.pth", "strict_load_d": False},
        "train": {"ema_decay": 0.999, "optim_g": {"type": "Adam"}},
        "logger": {"print_freq": 100},
    }


def test_options_of_basicsrs_own_models_are_left_to_it():
    assert rejected(basicsr_options()) is None
    assert VALIDATOR.is_valid(basicsr_options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path__pretrain_network_d": 3}, "path: pretrain_network_d: 3 is not a text"),
        ({"path__strict_load_d": "no"}, "path: strict_load_d: 'no' is not true or false"),
        ({"datasets__train__use_flip": 1}, "datasets: train: use_flip: 1 is not true or false"),
        ({"datasets__train__mean": [None]}, "datasets: train: mean: [None] is not a list of"),
        ({"datasets__train__io_backend": {"type": "memcached"}}, "unknown value 'memcached'"),
    ],
)
def test_what_is_known_of_them_is_checked(changes, message):
    assert message in rejected(changed(basicsr_options(), changes))


def test_a_misspelt_key_is_named_rather_than_the_missing_one():
    with pytest.raises(AdaBMError, match="x: unknown key 'typ'; did you mean 'type'"):
        check_section("x", table.Dataset, {"name": "y", "typ": "z"})
