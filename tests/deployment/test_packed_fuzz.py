"""Packed files and checkpoints that were changed at random, each with a checksum that fits.

Such a file is refused in one line, or its network holds what the file says; never anything else.
"""

import copy
import io
import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TINY_EDSR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from adabm_basicsr import AdaBMError, calibrate, load_network, save_checkpoint, save_packed
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.packed import CHECKSUM, checksum, pack, read_packed
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
# By recipe; the second has layers folded, the third has some replaced.
NETWORKS = {
    "best": dict(TINY_EDSR),
    "static": {"type": "SRResNet", "num_feat": 8, "num_block": 1, "upscale": 2},
    "paper": {
        "type": "ECBSR",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_block": 2,
        "num_channel": 8,
        "with_idt": True,
        "act_type": "prelu",
        "scale": 2,
    },
}
SUFFIXES = (".pth", ".safetensors")
PEAK = 2_000_000  # kB of memory

# What stands in place of a part of the description: wrong for most, right for some.
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    8,
    9,
    32,
    48,
    1024,
    10**4,
    10**6,
    2**30,
    10**9,
    2**63,
    10**40,
    0.5,
    -1.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a\nb",
    "a" * 300,
    "*",
    "head",
    "body",
    "best",
    "static",
    "conv_first",
    "body.0",
    "body.0.conv1",
    "EDSR",
    "SwinIR",
    "Spandrel",
    "AdaBMNetwork",
    "/etc/passwd",
    [],
    [1],
    [-1, 0],
    ["x"],
    [[]],
    ["body.0", "x"],
    {},
    {"a": 1},
    {"*": {"w_bits": 2}},
    {"conv_first": "head"},
]
KEYS = ["x", "", "type", "path", "conv_first", "body.0.conv1", "a\nb", "num_block", "blueprint"]
NUMBER = st.integers(0, 10**6)
DESCRIPTION_CHANGES = st.lists(
    st.tuples(
        NUMBER,
        st.sampled_from(["replace", "replace", "delete", "add", "swap", "more"]),
        st.one_of(st.sampled_from(VALUES), st.integers(-10, 70)),
    ),
    min_size=1,
    max_size=3,
)
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
]
TENSOR_CHANGES = st.lists(
    st.tuples(
        NUMBER,
        st.sampled_from(["delete", "rename", "swap", "resize", "retype", "fill", "one", "expand"]),
        NUMBER,
    ),
    min_size=1,
    max_size=3,
)
FILLINGS = [0, 1, -1, 2, 3, 8, 200, 255, -128, 1e-30, 1e30, float("nan"), float("inf"), 0.3]
BYTE_CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "copy"]), NUMBER, NUMBER),
    min_size=1,
    max_size=4,
)

MANY = 500  # examples


def examples(count):
    return settings(
        max_examples=count,
        deadline=20_000,
        suppress_health_check=list(HealthCheck),
        derandomize=count < MANY,  # more look for what nobody has seen yet
    )


# Changing


def places(value):
    """Every section or list in JSON that holds something, with each of its keys."""
    found = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    else:
        return found
    for key in keys:
        found.append((value, key))
        found += places(value[key])
    return found


def change_description(description, changes):
    for number, how, value in changes:
        found = places(description)
        if not found:
            return
        # The first choice is among sections, so that long lists of layers don't outweigh options.
        inside = [description, *[part for part in description.values() if isinstance(part, dict)]]
        if number % 3:
            found = places(inside[number % len(inside)]) or found
        section, key = found[number // 7 % len(found)]
        if how == "replace":
            section[key] = copy.deepcopy(value)
        elif how == "delete":
            del section[key]
        elif how == "swap":
            other, other_key = found[number // 11 % len(found)]
            first, second = copy.deepcopy(section[key]), copy.deepcopy(other[other_key])
            section[key] = second
            other[other_key] = first
        elif how == "more" and type(section[key]) in (int, float):
            section[key] *= 1000
        elif isinstance(section, dict):
            section[KEYS[number % len(KEYS)]] = copy.deepcopy(value)
        else:
            section.append(copy.deepcopy(value))


def change_tensors(tensors, changes):
    for number, how, value in changes:
        names = list(tensors)
        if not names:
            return
        name, other = names[number % len(names)], names[value % len(names)]
        if how == "delete":
            del tensors[name]
        elif how == "rename":
            tensors[f"{name}x" if value % 2 else other] = tensors.pop(name)
        elif how == "swap":
            tensors[name], tensors[other] = tensors[other], tensors[name]
        else:
            tensors[name] = changed_tensor(tensors[name], how, value)


def changed_tensor(tensor, how, value):
    flat = tensor.flatten()
    if how == "resize":
        longer = torch.cat([flat, flat[:1]])
        return [flat[:-1], longer, flat, tensor[None], flat[:0]][value % 5].clone()
    if how == "retype":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of imaginary parts
            return tensor.to(DTYPES[value % len(DTYPES)])
    if how == "expand":
        return torch.zeros(1, dtype=tensor.dtype).expand(10**3, 10**3)
    filled = tensor.clone()
    part = filled.view(-1)
    if how == "one" and len(part):
        part = part[value % len(part)]
    filling = FILLINGS[value % len(FILLINGS)]
    if not tensor.is_floating_point():
        filling = int(filling) % 256 if abs(filling) < 1e9 else 7
    part.copy_(torch.tensor(filling).to(part.dtype))
    return filled


def change_bytes(content, changes):
    content = bytearray(content)
    for how, number, value in changes:
        place = number % max(len(content), 1)
        if how == "flip" and content:
            content[place] ^= 1 + value % 255
        elif how == "insert":
            content[place:place] = bytes([value % 256]) * (1 + value % 9)
        elif how == "delete":
            del content[place : place + 1 + value % 9]
        else:
            content[place : place + 64] = content[value : value + 64]
    return bytes(content)


# Files


class Written:
    """A file of a network, in its parts.

    Attributes:
        suffix: Which kind of file.
        description: What it says of its network.
        tensors: What it holds.
    """

    def __init__(self, path):
        self.suffix = path.suffix
        self.content = path.read_bytes()
        self.output = outcome(path)
        if self.suffix == ".pth":
            stored = torch.load(path, weights_only=True)
            self.description = json.loads(stored[DESCRIPTION_KEY])
            self.tensors = stored["params"]
        else:
            self.description, self.tensors = read_packed(path)

    def parts(self):
        return copy.deepcopy(self.description), dict(self.tensors)

    def write(self, path, description, tensors):
        """Write such a file of other parts."""
        if self.suffix == ".pth":
            stored = {"params": tensors, DESCRIPTION_KEY: json.dumps(description)}
            written = io.BytesIO()
            torch.save(stored, written)
            path.write_bytes(written.getvalue())
            return
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        described = description
        if isinstance(description, dict):
            description.pop(CHECKSUM, None)
            described = {**description, CHECKSUM: checksum(description, tensors)}
        metadata = {DESCRIPTION_KEY: json.dumps(described)}
        path.write_bytes(save({name: t.clone() for name, t in tensors.items()}, metadata))


# CI has all three.
EACH_RECIPE = ["best", "static", pytest.param("paper", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=EACH_RECIPE)
def written(request, tmp_path_factory):
    """Files of a network, by suffix."""
    torch.manual_seed(0)
    recipe = request.param
    net = AdaBMNetwork(dict(NETWORKS[recipe]), recipe=recipe, fully_quantized=True)
    calibrate(net, [IMAGES])
    folder = tmp_path_factory.mktemp("written")
    save_checkpoint(net, folder / "net.pth")
    save_packed(net, folder / "net.safetensors")
    return {suffix: Written(folder / f"net{suffix}") for suffix in SUFFIXES}


def outcome(path):
    """What the network of a file makes of `IMAGES`; None if it is refused by a clear error."""
    reason = ""
    try:
        net = load_network(path)
        with torch.no_grad():
            output = net(IMAGES)
    except AdaBMError as error:
        reason = str(error)
    if reason:
        assert len(reason.splitlines()) == 1
        return None
    check_holds_the_same(path, net)
    return output


def check_holds_the_same(path, net):
    """Check that a network holds what its file says."""
    if path.suffix == ".pth":
        stored = torch.load(path, weights_only=True)
        described = json.loads(stored[DESCRIPTION_KEY])
        for key, value in net.state_dict().items():
            assert torch.equal(value, stored["params"][key].to(value.dtype)), key
    else:
        described, tensors = read_packed(path)
        again, _ = pack(net)
        for layer, quantizer in net.weight_quantizers().items():
            name = f"levels.{layer}"
            # All grid points are alike where they have no distance.
            if quantizer.upper.min() > 1e-6:
                assert torch.equal(again[name], tensors[name].flatten()), name
    assert net.description["network"] == described["network"]
    if described.get("blueprint") is not None:
        assert net.description["blueprint"] == described["blueprint"]


def memory(key):
    """Memory of the process in kB: ``VmRSS`` now, ``VmHWM`` at most since that was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(key))
    return int(found.split()[1])


def check(path):
    """Load a file that was changed, within the memory that there is for it."""
    Path("/proc/self/clear_refs").write_text("5")
    # The process may have grown large by other tests.
    before = memory("VmRSS")
    outcome(path)
    assert memory("VmHWM") - before < PEAK


@pytest.fixture
def check_description(written, tmp_path):
    """Loads a file whose description was changed."""

    def check_changed(suffix, changes):
        description, tensors = written[suffix].parts()
        change_description(description, changes)
        written[suffix].write(tmp_path / f"net{suffix}", description, tensors)
        check(tmp_path / f"net{suffix}")

    return check_changed


@pytest.fixture
def check_tensors(written, tmp_path):
    """Loads a file whose tensors were changed."""

    def check_changed(suffix, changes):
        description, tensors = written[suffix].parts()
        change_tensors(tensors, changes)
        written[suffix].write(tmp_path / f"net{suffix}", description, tensors)
        check(tmp_path / f"net{suffix}")

    return check_changed


@pytest.fixture
def check_bytes(written, tmp_path):
    """Loads a file whose bytes were changed: it is refused, or the change did nothing."""

    def check_changed(suffix, changes):
        path = tmp_path / f"net{suffix}"
        path.write_bytes(change_bytes(written[suffix].content, changes))
        found = outcome(path)
        assert found is None or torch.equal(found, written[suffix].output)

    return check_changed


FEW = examples(34)  # of each of three networks
MANY = examples(700)
# Instead of those that `written` chooses, of which one is slow: these aren't CI's.
EACH_NETWORK = pytest.mark.parametrize("written", NETWORKS, indirect=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=DESCRIPTION_CHANGES)
@FEW
def test_changed_descriptions(check_description, suffix, changes):
    check_description(suffix, changes)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=TENSOR_CHANGES)
@FEW
def test_changed_tensors(check_tensors, suffix, changes):
    check_tensors(suffix, changes)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=BYTE_CHANGES)
@FEW
def test_changed_bytes(check_bytes, suffix, changes):
    check_bytes(suffix, changes)


@pytest.mark.fuzz
@EACH_NETWORK
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=DESCRIPTION_CHANGES)
@MANY
def test_many_changed_descriptions(check_description, suffix, changes):
    check_description(suffix, changes)


@pytest.mark.fuzz
@EACH_NETWORK
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=TENSOR_CHANGES)
@MANY
def test_many_changed_tensors(check_tensors, suffix, changes):
    check_tensors(suffix, changes)


@pytest.mark.fuzz
@EACH_NETWORK
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=BYTE_CHANGES)
@MANY
def test_many_changed_bytes(check_bytes, suffix, changes):
    check_bytes(suffix, changes)
