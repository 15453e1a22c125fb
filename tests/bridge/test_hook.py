"""Importing and registering."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code, *flags):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, adabm_basicsr\n"
        "heavy = {'torch', 'basicsr', 'cv2', 'numpy', 'pydantic'}\n"
        "print(heavy & set(sys.modules))"
    )
    assert python(code) == "set()"


def test_plugin_registers_when_basicsr_is_imported():
    code = (
        "import adabm_basicsr, sys; before = 'adabm_basicsr.bridge.registration' in sys.modules\n"
        "from basicsr.utils import registry as r\n"
        "print(before, 'AdaBMNetwork' in r.ARCH_REGISTRY, 'AdaBMModel' in r.MODEL_REGISTRY,\n"
        "      'CalibrationDataset' in r.DATASET_REGISTRY)"
    )
    assert python(code, "-W", "ignore") == "False True True True"


def test_plugin_registers_when_basicsr_is_there_already():
    code = (
        "from adabm_basicsr.bridge import patches; patches.before_import()\n"
        "import sys; finders = [f for f in sys.meta_path if type(f).__name__ == '_BasicSRFinder']\n"
        "[sys.meta_path.remove(f) for f in finders]\n"
        "import basicsr; from adabm_basicsr.bridge.hook import install_hook\n"
        "install_hook(); install_hook()\n"
        "from basicsr.utils.registry import MODEL_REGISTRY as m; print('AdaBMModel' in m)"
    )
    assert python(code, "-W", "ignore") == "True"


def test_looking_for_basicsr_does_not_use_up_the_hook():
    code = (
        "import adabm_basicsr, importlib.util; importlib.util.find_spec('basicsr')\n"
        "import basicsr; from basicsr.utils.registry import MODEL_REGISTRY as m\n"
        "print('AdaBMModel' in m)"
    )
    assert python(code, "-W", "ignore") == "True"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "data.calibration_dataset",
        "archs.adabm_arch",
        "archs.published",
        "models.adabm_model",
        "deployment.inspection",
        "demo.run",
        "commands.report",
    ],
)
def test_every_module_can_be_imported_first(module):
    assert python(f"import adabm_basicsr.{module}; print('fine')", "-W", "ignore") == "fine"
