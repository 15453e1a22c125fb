"""Environments of their own, with versions of runtimes that can't stand beside the tested ones."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parent / "run_elsewhere.py"


class Environment:
    """A Python with packages.

    Args:
        folder: Where it is made.
        packages: What pip installs; the test is skipped where it can't.
    """

    def __init__(self, folder, *packages):
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        # Not those versions that this project is tested with.
        self.variables = {**os.environ}
        for name in ("PYTHONPATH", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
            self.variables.pop(name, None)
        done = self.run("-m", "pip", "install", "--quiet", *packages)
        if done.returncode != 0:
            pytest.skip(f"pip can't get {', '.join(packages)}: {done.stderr.strip()[-200:]}")

    def output(self, runtime, model, image):
        """What a runtime makes of an image, both ``(1, C, H, W)`` tensors."""
        taken = self.folder / "image.npy"
        made = self.folder / "output.npy"
        np.save(taken, image.numpy())
        done = self.run(SCRIPT, runtime, model, taken, made)
        assert done.returncode == 0, done.stderr
        return torch.from_numpy(np.load(made))

    def add_packages_from_here(self):
        """Let it import what can be imported here, but for its own packages."""
        folders = [path for path in sys.path if not path.startswith(sys.base_prefix)]
        own = Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))
        (own / "here.pth").write_text("\n".join(folders))

    def run(self, *arguments):
        """Run its Python; gives the completed process."""
        return subprocess.run(
            [self.python, *arguments],
            env=self.variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
