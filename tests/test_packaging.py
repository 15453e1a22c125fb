"""A wheel and a source distribution are built from the repository.

They install, are complete, and start quickly.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("adabm_basicsr", "options", "setup.py", "README.md", "LICENSE")
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}

pytestmark = pytest.mark.slow


def run(*command, cwd):
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=CLEAN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, by name, from a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for hook in ("build_wheel", "build_sdist"):
        run(sys.executable, "-c", BUILD, hook, folder / "dist", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request, built, tmp_path_factory):
    """A virtual environment with the package from one of them.

    The requirements are those of this environment.
    """
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site_packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    (Path(site_packages) / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        *offline,
        built[request.param],
        cwd=folder,
    )
    return folder, Path(site_packages)


def names_of(pattern, folder):
    return {path.relative_to(folder).as_posix() for path in folder.glob(pattern)}


def test_archives_hold_weights_options_and_licence(built):
    with zipfile.ZipFile(built["wheel"]) as wheel, tarfile.open(built["sdist"]) as sdist:
        names = {"wheel": wheel.namelist(), "sdist": sdist.getnames()}
    for kind, found in names.items():
        assert [name for name in found if name.endswith("LICENSE")], kind
        assert [name for name in found if name.endswith("adabm_basicsr/py.typed")], kind
        assert len([name for name in found if name.endswith(".yml")]) == len(
            names_of("**/*.yml", ROOT / "options")
        )


def test_installed_files_are_the_repositorys(installed):
    package = installed[1] / "adabm_basicsr"
    for pattern in ("**/*.py", "demo/*.pth", "options/*.json", "report/templates/*", "py.typed"):
        assert names_of(pattern, ROOT / "adabm_basicsr") <= names_of(pattern, package)
    assert names_of("**/*.yml", ROOT / "options") == names_of("**/*.yml", package / "options_files")


def test_import_leaves_torch_and_basicsr_alone(installed):
    folder, site_packages = installed
    script = (
        "import sys, adabm_basicsr; "
        "print(adabm_basicsr.__file__, {'torch', 'basicsr'} & set(sys.modules))"
    )
    command = (folder / "bin" / "python", "-c", script)
    printed = run(*command, cwd=folder)
    assert printed.startswith(str(site_packages))
    assert printed.endswith("set()\n")


def test_the_command_is_installed(installed):
    folder, _ = installed
    command = (folder / "bin" / "adabm-basicsr", "--help")
    assert "quantize EDSR on photographs" in run(*command, cwd=folder)


def test_demo_takes_its_installed_options(installed):
    folder, site_packages = installed
    script = (
        "from adabm_basicsr.demo.run import option_file; print(option_file('train_adaptive.yml'))"
    )
    path = Path(run(folder / "bin" / "python", "-c", script, cwd=folder).strip())
    assert path.is_file()
    assert path.is_relative_to(site_packages)
