"""ONNX files with random changes behind a right checksum: an error in one line, or a picture."""

import json
import multiprocessing
import resource
import traceback

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from machine import peak_bytes
from onnx import helper

from adabm_basicsr import AdaBMError, OnnxNetwork
from adabm_basicsr.commands.inspect import show
from adabm_basicsr.deployment.inspection import inspect
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.deployment.runtimes import RUNTIMES
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY

pytestmark = pytest.mark.runtimes

SECONDS = 20
START_SECONDS = 120
BYTES = 2 * 10**9
ADDRESSES = 8 * 10**9  # what the process may ask for, so that a mistake can't fill the machine
IMAGE = torch.rand(1, 3, 11, 12, generator=torch.Generator().manual_seed(1))
SHOWN = 4  # how many numbers of a list are changed; weights have hundreds

NUMBERS = [0, 1, -1, 2, 3, 7, 12, 255, 65536, 2**31 - 1, 2**40, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -1.0, 1e-38, 1e38, float("nan"), float("inf")]
BLOBS = [b"", b"\0", b"\xff" * 8, b"\x7f" * 3, b"\x00\x00\xc0\x7f"]
OPERATORS = ["Conv", "Identity", "Loop", "Pad", "Range", "Relu", "Resize", "Tile", "QuantizeLinear"]
WORDS = ["", "x", "image", "level", "output", "axis", "é\u2028\x1b[31m", "a" * 300, *OPERATORS]
VALUES = [None, True, 0, -1, 3, 2.5, 10**400, float("nan"), "", "x\n\x1b[31m", [], [[1]], {}]
HOW = ["delete", "replace", "add"]


def open_file(path, runtime):
    """The picture that a file makes, if it makes one, and why it was refused."""
    reasons = []
    picture = None
    try:
        show(inspect(path))
    except AdaBMError as error:
        reasons.append(str(error))
    try:
        picture = OnnxNetwork(path, runtime, threads=1)(IMAGE).numpy()
    except AdaBMError as error:
        reasons.append(str(error))
    return picture, reasons


def serve(connection):
    """Open the files that are named."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    connection.send("ready")
    while True:
        path, runtime = connection.recv()
        try:
            answer = open_file(path, runtime)
        except Exception:
            answer = traceback.format_exc()
        connection.send((answer, peak_bytes()))


class Opener:
    """Opens files in a process of its own, so that a crash is one failure of one test."""

    def __init__(self):
        self.process = None

    def open(self, path, runtime):
        if self.process is None:
            self.start()
        self.connection.send((path, runtime))
        try:
            answer, used = self.receive(SECONDS)
        except Exception:
            self.stop()
            raise
        if used > BYTES:
            self.stop()
        assert used <= BYTES, answer
        assert not isinstance(answer, str), answer
        return answer

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=[other], daemon=True)
        self.process.start()
        other.close()
        self.receive(START_SECONDS)

    def receive(self, seconds):
        if not self.connection.poll(seconds):
            raise TimeoutError(f"no answer within {seconds} seconds")
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise ChildProcessError(f"crashed: {self.process.exitcode}") from None

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


@pytest.fixture(scope="module")
def opener():
    opener = Opener()
    yield opener
    opener.stop()


@pytest.fixture(scope="module")
def pictures(exported, opener):
    """By runtime, what the whole file makes of `IMAGE`."""
    found = {}
    for runtime in RUNTIMES:
        found[runtime], reasons = opener.open(exported, runtime)
        assert not reasons
    return found


@pytest.fixture(scope="module")
def check(opener, pictures, tmp_path_factory):
    """Open a file of this content; returns the picture, or None where it was refused."""
    path = tmp_path_factory.mktemp("changed") / "net.onnx"

    def check(content, runtime):
        path.write_bytes(sealed(content))
        picture, reasons = opener.open(path, runtime)
        for reason in reasons:
            assert len(reason.splitlines()) == 1
            assert len(reason) < 2000
        if picture is None:
            assert reasons
            return None
        assert picture.dtype == np.float32
        assert picture.ndim == IMAGE.dim()
        assert len(picture) == len(IMAGE)
        assert picture.size > 0
        return picture

    return check


def without_seal(exported):
    model = onnx.load(exported)
    del model.metadata_props[1:]
    return model


def places(message):
    """Every field that is set, and each element of those that repeat: (message, field, index)."""
    found = []
    for field, value in message.ListFields():
        is_message = field.message_type is not None
        if not field.is_repeated:
            found.append((message, field, None))
            if is_message:
                found += places(value)
            continue
        for index, element in enumerate(value if is_message else value[:SHOWN]):
            found.append((message, field, index))
            if is_message:
                found += places(element)
    return found


def value_at(message, field, index):
    value = getattr(message, field.name)
    return value if index is None else value[index]


def values_like(model, field, found):
    """What may be put in place of a field: of its own kind, so that the file can be written."""
    if field.message_type is not None:
        alike = [place for place in found if place[1].message_type is field.message_type]
        return [value_at(*place) for place in alike]
    if field.enum_type is not None:
        return [value.number for value in field.enum_type.values]
    if field.type == field.TYPE_BYTES:
        return BLOBS
    if field.type == field.TYPE_STRING:
        names = []
        for node in model.graph.node:
            names += [*node.input, *node.output]
        return WORDS + names
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return FLOATS
    if field.cpp_type == field.CPPTYPE_INT32:
        return [number for number in NUMBERS if abs(number) < 2**31]
    return [number for number in NUMBERS if number >= 0 or field.cpp_type == field.CPPTYPE_INT64]


def change(model, place, how, choice):
    """Delete, replace or add a field of a model, or an element of one."""
    found = places(model)
    message, field, index = found[place % len(found)]
    values = values_like(model, field, found)
    value = values[choice % len(values)]
    if field.message_type is not None:  # it may be the one that is deleted
        original = value
        value = type(original)()
        value.CopyFrom(original)
    if how == "delete" and index is None:
        message.ClearField(field.name)
    elif how == "delete":
        del getattr(message, field.name)[index]
    elif how == "add" and index is not None:
        getattr(message, field.name).append(value)
    elif field.message_type is not None:
        value_at(message, field, index).CopyFrom(value)
    elif index is None:
        setattr(message, field.name, value)
    else:
        getattr(message, field.name)[index] = value


NUMBER = st.integers(0, 10**5)
RUNTIME = st.sampled_from(list(RUNTIMES))
CHANGES = st.lists(st.tuples(NUMBER, st.sampled_from(HOW), NUMBER), min_size=1, max_size=3)
SPLICES = st.lists(st.tuples(NUMBER, st.integers(0, 9), st.binary(max_size=9)), min_size=1)
JSON = st.recursive(st.sampled_from(VALUES), lambda inner: st.lists(inner) | st.tuples(inner))
KEYS = st.sampled_from(["format", "size_multiple", "network", "options", "version", "zzz"])
DESCRIPTIONS = st.dictionaries(KEYS, JSON, min_size=1, max_size=3)

MANY = 500  # examples


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=count < MANY,  # more look for what nobody has seen yet
    )


def check_changed_graph(exported, check, runtime, changes):
    model = without_seal(exported)
    for place, how, choice in changes:
        change(model, place, how, choice)
    check(model.SerializeToString(), runtime)


def check_spliced(exported, check, runtime, splices):
    content = without_seal(exported).SerializeToString()
    for number, length, inserted in splices:
        place = number % len(content)
        content = content[:place] + inserted + content[place + length :]
    check(content, runtime)


def check_described(exported, check, pictures, runtime, changes):
    model = without_seal(exported)
    description = json.loads(model.metadata_props[0].value)
    description.update(changes)
    helper.set_model_props(model, {DESCRIPTION_KEY: json.dumps(description)})
    picture = check(model.SerializeToString(), runtime)
    if picture is not None and "size_multiple" not in changes:
        assert np.array_equal(picture, pictures[runtime])


@given(runtime=RUNTIME, changes=CHANGES)
@examples(120)
def test_changed_graphs_are_rejected_or_make_a_picture(exported, check, runtime, changes):
    check_changed_graph(exported, check, runtime, changes)


@given(runtime=RUNTIME, splices=SPLICES)
@examples(40)
def test_changed_bytes_are_rejected_or_make_a_picture(exported, check, runtime, splices):
    check_spliced(exported, check, runtime, splices)


@given(runtime=RUNTIME, changes=DESCRIPTIONS)
@example(runtime="onnxruntime", changes={"format": "x" * 10**5})
@examples(40)
def test_changed_descriptions_are_rejected_or_change_nothing(
    exported, check, pictures, runtime, changes
):
    check_described(exported, check, pictures, runtime, changes)


@pytest.mark.fuzz
@given(runtime=RUNTIME, changes=CHANGES)
@examples(1400)
def test_many_changed_graphs_are_rejected_or_make_a_picture(exported, check, runtime, changes):
    check_changed_graph(exported, check, runtime, changes)


@pytest.mark.fuzz
@given(runtime=RUNTIME, splices=SPLICES)
@examples(300)
def test_many_changed_bytes_are_rejected_or_make_a_picture(exported, check, runtime, splices):
    check_spliced(exported, check, runtime, splices)


@pytest.mark.fuzz
@given(runtime=RUNTIME, changes=DESCRIPTIONS)
@examples(300)
def test_many_changed_descriptions_are_rejected_or_change_nothing(
    exported, check, pictures, runtime, changes
):
    check_described(exported, check, pictures, runtime, changes)
