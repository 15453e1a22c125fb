"""Networks that take clips as graphs: a recurrent one step by step, one of windows as it is."""

import copy
import json
import re

import onnx
import pytest
import torch
from agreement import THREADS
from basicsr.archs.basicvsr_arch import BasicVSR
from clip_networks import CarriesOn, MiddleFrame, Stacked
from onnx import helper
from video_networks import built, clip, quantized

from adabm_basicsr import AdaBMError, OnnxNetwork, calibrate, quantize, save_onnx
from adabm_basicsr.deployment.engines import EXPORTS, save_for
from adabm_basicsr.deployment.inspection import inspect
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.seal import sealed
from adabm_basicsr.deployment.onnx.steps import BasicVSRStep, has_steps
from adabm_basicsr.deployment.runtimes import RUNTIMES
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY
from adabm_basicsr.quantization.engines import DEFAULT_ENGINE
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

pytestmark = pytest.mark.runtimes
# OpenVINO takes its time to compile them.
EACH_RUNTIME = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "openvino" else []) for name in RUNTIMES
]


def run_steps(step, clip, channels):
    """A clip by a function of one step, as its docstring says."""
    frames = clip.unbind(1)
    last = len(frames) - 1
    none = torch.zeros(1, channels, *clip.shape[-2:])
    states = {len(frames): none}
    for number in range(last, -1, -1):
        following = frames[min(number + 1, last)]
        made = step(frames[number], following, states[number + 1], frames[number], none)
        states[number] = made[1]
    made, state = [], none
    for number, frame in enumerate(frames):
        following, before = frames[min(number + 1, last)], frames[max(number - 1, 0)]
        output, _, state = step(frame, following, states[number + 1], before, state)
        made.append(output)
    return torch.stack(made, 1)


@torch.no_grad()
def test_steps_compute_what_the_network_does():
    network = built("BasicVSR")
    frames = torch.rand(1, 3, 3, 35, 66)
    expected = network(frames.clone())
    torch.testing.assert_close(run_steps(BasicVSRStep(network), frames, 8), expected)


def long_clip(frames=20):
    """It moves, and becomes simpler."""
    picture = clip("BasicVSR", seed=3)[:, :1].repeat(1, frames, 1, 1, 1)
    for number in range(frames):
        moved = picture[:, number].roll(number // 2, -1)
        noise = torch.rand_like(moved) - 0.5
        picture[:, number] = (moved + noise * (1 - number / frames)).clamp(0, 1)
    return picture


@pytest.fixture(scope="module")
def recurrent():
    """A BasicVSR whose frames have bits of their own."""
    torch.manual_seed(0)
    net = quantized("BasicVSR", w_bits=4, a_bits=4, ingredients={"adaptive": True})
    return calibrate(net, [long_clip(4), clip("BasicVSR")])


@pytest.fixture(scope="module")
def recurrent_file(recurrent, tmp_path_factory):
    path = tmp_path_factory.mktemp("steps") / "net.onnx"
    save_onnx(recurrent, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("runtime", EACH_RUNTIME)
def test_a_recurrent_network_agrees_over_twenty_frames(recurrent, recurrent_file, runtime):
    frames = long_clip()
    classes = recurrent.image_mapping(frames[0])
    assert len(classes.unique()) > 1
    network = OnnxNetwork(recurrent_file, runtime, THREADS)
    assert network.clips == recurrent.clips
    output, expected = network(frames), recurrent(frames)
    assert output.shape == (1, 20, 3, 136, 144)
    for number in range(20):
        assert pixel_psnr(output[:, number], expected[:, number]) >= 50, number


@torch.inference_mode()
def test_a_clip_of_one_frame(recurrent, recurrent_file):
    frame = clip("BasicVSR", seed=3)[:, :1]
    network = OnnxNetwork(recurrent_file, "onnxruntime", THREADS)
    assert pixel_psnr(network(frame)[:, 0], recurrent(frame)[:, 0]) >= 50


@torch.no_grad()
def test_any_program_runs_the_graph_of_a_step(recurrent, recurrent_file):
    import onnxruntime

    session = onnxruntime.InferenceSession(recurrent_file)
    names = [value.name for value in session.get_inputs()]

    def step(*values):
        inputs = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        made = session.run(["output", "backward_state", "forward_state"], inputs)
        return [torch.from_numpy(value) for value in made]

    frames = long_clip(3)
    output = run_steps(step, frames, 8)
    assert pixel_psnr(output[0], recurrent(frames)[0]) >= 50


@pytest.mark.slow
@torch.no_grad()
def test_a_file_of_one_class(recurrent, tmp_path):
    save_onnx(recurrent, tmp_path / "net.onnx", level=1)
    middle = copy.deepcopy(recurrent)
    middle.image_mapping.lower.fill_(-1)
    middle.image_mapping.upper.fill_(1e9)
    frames = clip("BasicVSR", seed=1)
    for runtime in RUNTIMES:
        output = OnnxNetwork(tmp_path / "net.onnx", runtime, THREADS)(frames)
        assert pixel_psnr(output[0], middle(frames)[0]) >= 50


@pytest.fixture(scope="module")
def of_windows():
    window = torch.rand(1, 5, 3, 16, 16)
    net = quantize(MiddleFrame(), window, recipe="static", fully_quantized=True)
    return calibrate(net, [window])


@pytest.fixture(scope="module")
def file_of_windows(of_windows, tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "net.onnx"
    save_onnx(of_windows, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_small_network_of_windows_agrees(of_windows, file_of_windows, runtime):
    network = OnnxNetwork(file_of_windows, runtime, THREADS)
    windows = torch.rand(2, 5, 3, 13, 18)
    assert pixel_psnr(network(windows), of_windows(windows)) >= 50
    with pytest.raises(AdaBMError, match=r"valid: a float tensor \(B, 5, 3, H, W\)"):
        network(windows[:, :4])


@torch.no_grad()
def test_a_network_of_one_length_gives_all_its_frames(tmp_path):
    clips = torch.rand(2, 5, 3, 13, 18)
    net = calibrate(quantize(Stacked(), clips, recipe="static", fully_quantized=True), [clips])
    save_onnx(net, tmp_path / "net.onnx")
    output = OnnxNetwork(tmp_path / "net.onnx", "onnxruntime", THREADS)(clips)
    assert pixel_psnr(output, net(clips)) >= 50


@pytest.mark.parametrize("engine", [name for name in EXPORTS if name != DEFAULT_ENGINE])
def test_other_engines_take_no_clips(of_windows, tmp_path, engine):
    expected = f"^--for {engine}: the network takes clips; valid: --for openvino alone$"
    with pytest.raises(AdaBMError, match=expected):
        save_for(engine, of_windows, tmp_path / "net")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["EDVR", "DUF", "TOFlow"])
def test_windows_agree(name, tmp_path):
    path = tmp_path / "net.onnx"
    net = calibrate(quantized(name), [clip(name)])
    save_onnx(net, path)
    assert "DeformConv" not in {node.op_type for node in onnx.load(path).graph.node}
    for runtime in RUNTIMES:
        network = OnnxNetwork(path, runtime, THREADS)
        for seed, cut in ((0, 0), (1, 3)):
            window = clip(name, seed)[..., cut:, :]
            assert pixel_psnr(network(window), net(window)) >= 50


def test_windows_of_several_classes_are_refused(tmp_path):
    net = quantized("EDVR", ingredients={"adaptive": True})
    calibrate(net, [clip("EDVR")])
    with pytest.raises(AdaBMError, match=r"^EDVR sees frames of several classes side by side, for"):
        save_onnx(net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


class Halved(BasicVSR):
    """Computes something else than what it inherits from."""

    def forward(self, x):
        return super().forward(x) / 2


def test_a_subclass_may_compute_something_else():
    assert has_steps(built("BasicVSR"))
    assert not has_steps(Halved(8, 1))
    assert not has_steps(built("BasicVSR++"))


def test_what_is_missing_for_a_recurrent_network():
    net = quantize(CarriesOn(), torch.rand(1, 5, 3, 16, 16), recipe="static", fully_quantized=True)
    expected = "^CarriesOn can't be written as ONNX: graphs of one step are known of BasicVSR alone"
    with pytest.raises(AdaBMError, match=f"{expected}; a packed file holds it$"):
        to_onnx(net)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("IconVSR", "IconVSR can't be written as ONNX: its step would take the features of key fr"),
        ("BasicVSR++", "BasicVSRPlusPlus can't be written as ONNX: its step would take the states"),
    ],
)
def test_what_is_missing_for_those_of_basicsr(name, missing):
    with pytest.raises(AdaBMError, match=f"^{re.escape(missing)}.*; a packed file holds it$"):
        to_onnx(quantized(name))


def changed(path, target, change):
    """A copy of a file that says something else of itself, or takes something else."""
    model = onnx.load(path)
    described = {entry.key: entry.value for entry in model.metadata_props}
    description = json.loads(described[DESCRIPTION_KEY])
    change(model, description)
    del model.metadata_props[:]
    helper.set_model_props(model, {DESCRIPTION_KEY: json.dumps(description)})
    target.write_bytes(sealed(model.SerializeToString()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model, said: said["clips"].update(frames=0),
            "is damaged: .*clips: frames",
        ),
        (
            lambda model, said: said.update(clips=None),
            "its graph doesn't take one input 'image' of 4 axes",
        ),
        (
            lambda model, said: said["clips"].update(any_length=False),
            "its graph doesn't take one input 'image' of 5 axes",
        ),
        (
            lambda model, said: model.graph.output.pop(),
            "its graph doesn't make 'forward_state'",
        ),
        (
            lambda model, said: model.graph.input.reverse(),
            "its graph doesn't take image, next, next_state, previous, previous_state",
        ),
    ],
)
def test_damaged_files(recurrent_file, tmp_path, change, message):
    changed(recurrent_file, tmp_path / "bad.onnx", change)
    with pytest.raises(AdaBMError, match=message):
        OnnxNetwork(tmp_path / "bad.onnx")


def test_windows_of_another_length_than_the_file_says(file_of_windows, tmp_path):
    changed(file_of_windows, tmp_path / "bad.onnx", lambda _, said: said["clips"].update(frames=7))
    with pytest.raises(AdaBMError, match="its graph doesn't take windows of 7 frames"):
        OnnxNetwork(tmp_path / "bad.onnx")


def test_a_graph_of_a_step_is_looked_at(recurrent_file):
    names = [row["name"] for row in inspect(recurrent_file).rows]
    assert any("backward_trunk" in name for name in names)
