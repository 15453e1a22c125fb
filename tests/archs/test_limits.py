"""Files that describe huge networks are refused before anything of that size is made."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from conftest import TINY_EDSR
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, save_checkpoint, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.archs.limits import Held, Limits, held_by
from adabm_basicsr.deployment.packed import read_packed, write_packed
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY

SMALL = Held(values=10_000, tensors=20)
TOO_LARGE = "the network that it describes is larger than what the file holds of it"
BUILDS = {
    "a layer": lambda: nn.Conv2d(10**5, 10**5, 3),
    "layers": lambda: [nn.Conv2d(64, 64, 3) for _ in range(10**9)],
    "small layers": lambda: [nn.Conv2d(1, 1, 1) for _ in range(10**9)],
    "modules": lambda: nn.Sequential(*[nn.ReLU() for _ in range(10**5)]),
    "a parameter of random numbers": lambda: nn.Parameter(torch.randn(10**5, 10**5)),
    "a table of windows": lambda: torch.arange(10**5)[:, None] - torch.arange(10**5)[None],
    "an image": lambda: F.interpolate(torch.zeros(1, 3, 48, 48), scale_factor=2.0**20),
    "a table on the way": lambda: nn.Linear(2, 2).register_buffer(
        "index", torch.stack([torch.zeros(2**24, dtype=torch.int8)] * 3)
    ),
}


@pytest.mark.parametrize("what", BUILDS)
def test_what_is_larger_than_the_file_is_not_made(what):
    with pytest.raises(AdaBMError, match=TOO_LARGE), Limits(SMALL):
        BUILDS[what]()


def test_outside_of_them_everything_can_be_made():
    with Limits(SMALL):
        nn.Conv2d(3, 8, 3)
    nn.Linear(5_000, 5_000)
    nn.Sequential(*[nn.ReLU() for _ in range(50_000)])


def test_views_of_one_memory_hold_it_once():
    values = torch.zeros(1_000)
    assert held_by([values, values[:10], values.view(10, 100)]) == Held(1_000, 3)


HUGE = [
    ("network", {"num_block": 10**9}),
    ("network", {"num_feat": 10**7}),
    ("network", {"num_feat": 2_000}),
    ("network", {"num_feat": 10**400}),
    ("network", {"upscale": 2**30}),
    ("network", {"num_in_ch": 10**9}),
    ("network", {"img_range": 10**400}),
    ("options", {"size_multiple": 10**6}),
    ("options", {"size_multiple": 257}),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint and a packed file of one network."""
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    net = calibrate(AdaBMNetwork(dict(TINY_EDSR), recipe="static"), [torch.rand(2, 3, 24, 24)])
    save_checkpoint(net, folder / "net.pth")
    save_packed(net, folder / "net.safetensors")
    return folder


def describe(written, folder, suffix, change):
    """Write a file with another description; returns its path."""
    path = folder / f"net{suffix}"
    if suffix == ".pth":
        content = torch.load(written / "net.pth", weights_only=True)
        description = json.loads(content[DESCRIPTION_KEY])
        change(description)
        torch.save({**content, DESCRIPTION_KEY: json.dumps(description)}, path)
    else:
        description, tensors = read_packed(written / "net.safetensors")
        change(description)
        write_packed(path, description, tensors)
    return path


# Each file is refused; what the process takes at most is printed.
LOAD = """
import resource, sys
from adabm_basicsr import AdaBMError, load_network
for path in sys.argv[1:]:
    try:
        load_network(path)
        print("loaded", path)
    except AdaBMError as error:
        print(error)
print("MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_huge_descriptions_are_refused(written, tmp_path):
    paths = []
    cases = itertools.product((".pth", ".safetensors"), (True, False), HUGE)
    for index, (suffix, has_blueprint, (section, sizes)) in enumerate(cases):
        folder = tmp_path / str(index)
        folder.mkdir()

        def change(description, section=section, sizes=sizes, has_blueprint=has_blueprint):
            description[section].update(sizes)
            if not has_blueprint:  # as in files of earlier versions
                del description["blueprint"]

        paths.append(describe(written, folder, suffix, change))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=len(paths) * 20,
        check=True,
    )
    *lines, memory = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith((f"{path}", f"packed file {path}"))
    assert int(memory.split()[1]) < 2000


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_architecture_is_too_large_for_its_own_file(name):
    net = AdaBMNetwork(dict(ARCHITECTURES[name]), recipe="static", w_bits=8)
    with Limits(held_by(net.state_dict().values())) as limits:
        AdaBMNetwork(dict(ARCHITECTURES[name]), recipe="static", w_bits=8)
    assert limits.values_left > 0
