"""Whether an exported graph computes what the simulation does, in every runtime and image class."""

from statistics import median

import torch

from adabm_basicsr import OnnxNetwork, calibrate
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.deployment.runtimes import RUNTIMES
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

SIZES = ((24, 26), (17, 33), (1, 1))
# Images are small, and several test processes share the CPU.
THREADS = 1


def random(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(count, channels=3, size=(24, 26), seed=1):
    coarse = random(count, channels, 6, 6, seed=seed)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def images(channels=3):
    """Simpler than all calibration images, like them, and more complex."""
    flat = torch.full((1, channels, 24, 26), 0.4)
    flat[..., :9] = 0.41
    return [flat, *smooth(4, channels).split(1), random(1, channels, 24, 26)]


def quantized(network, **options):
    torch.manual_seed(0)
    options = {"w_bits": 4, "a_bits": 4, "fully_quantized": True, **options}
    net = AdaBMNetwork(network=dict(network), **options)
    return calibrate(net, [smooth(8, net.in_channels, seed=seed) for seed in range(2)])


def in_onnxruntime(path):
    """A file as it is in ONNX Runtime: a function from an image to an image, both arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def in_openvino(path):
    """The same in OpenVINO."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda image: compiled(image)[0]


def agreement(output, expected):
    """In dB of the signal; a value that is rounded to another grid point moves all that follow."""
    return _in_db((output - expected).square().mean(), expected)


def agreement_of_most(output, expected):
    """The same of the median pixel, which a value at another grid point far away doesn't move."""
    return _in_db((output - expected).square().median(), expected)


def _in_db(noise, expected):
    return float(10 * torch.log10(expected.square().mean() / noise.clamp(min=1e-15)))


@torch.no_grad()
def check_agreement(net, path, least=38.0, typical=60.0, most=100.0, runtimes=RUNTIMES):
    """In these runtimes and of all image classes; returns the classes that came up.

    Both compute the same but for single values on the edge between two grid points, which not every
    image has.

    Args:
        net: A calibrated network.
        path: Its graph.
        least: Agreement of every image.
        typical: Agreement of the median image.
        most: Agreement of the median pixel of the median image: 100 dB is as float32 rounds.
        runtimes: Keys of `RUNTIMES`.
    """
    classes = set()
    for runtime in runtimes:
        network = OnnxNetwork(path, runtime, threads=THREADS)
        found = []
        found_of_most = []
        for image in images(net.in_channels):
            image_class = int(net.image_mapping(image)) + 1 if net.image_mapping else 1
            if net.in_full_precision(image):
                image_class = 3
            classes.add(image_class)
            assert network.level(image) == image_class
            output = network(image)
            expected = net(image)
            found.append(agreement(output, expected))
            found_of_most.append(agreement_of_most(output, expected))
        assert min(found) >= least, (runtime, found)
        assert median(found) >= typical, (runtime, found)
        assert median(found_of_most) >= most, (runtime, found_of_most)
    return classes


def check(net, run):
    """Assert that ``run``, from an array to an array, makes the simulation's pixels of any size."""
    for size in SIZES:
        image = smooth(1, net.in_channels, size)
        with torch.no_grad():
            expected = net(image)
        assert pixel_psnr(torch.from_numpy(run(image.numpy())), expected) >= 50, size
