"""GPUs compute in full float32 while a network is calibrated and fine-tuned, and only then."""

import torch
from agreement import smooth
from small_networks import Interpolating

from adabm_basicsr import analyse, calibrate, finetune, quantize


def allowed():
    """Whether convolutions may be rounded to TF32 now."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return cudnn.conv.fp32_precision == "tf32"
    return cudnn.allow_tf32


def test_calibration_and_fine_tuning_are_in_full_float32():
    seen = []
    images = smooth(2)
    network = Interpolating(1).eval()
    network.first.register_forward_hook(lambda *_: seen.append(allowed()))
    options = {"w_bits": 4, "a_bits": 4, "recipe": "paper"}
    analyse(network, images, **options)
    net = quantize(network, images[:1], **options)
    finetune(calibrate(net, [images]), [images], iterations_per_epoch=1)
    assert seen
    assert not any(seen)
    seen.clear()
    net(images)
    assert seen == [True]
