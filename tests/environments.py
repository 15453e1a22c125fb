"""Environments of their own, with versions of runtimes that can't stand beside the tested ones."""

import os
import subprocess
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
        command = [self.python, "-m", "pip", "install", "--quiet", *packages]
        done = self._run(command)
        if done.returncode != 0:
            pytest.skip(f"pip can't get {', '.join(packages)}: {done.stderr.strip()[-200:]}")

    def output(self, runtime, model, image):
        """What a runtime makes of an image, both ``(1, C, H, W)`` tensors."""
        taken = self.folder / "image.npy"
        made = self.folder / "output.npy"
        np.save(taken, image.numpy())
        done = self._run([self.python, SCRIPT, runtime, model, taken, made])
        assert done.returncode == 0, done.stderr
        return torch.from_numpy(np.load(made))

    def _run(self, command):
        return subprocess.run(
            command,
            env=self.variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
