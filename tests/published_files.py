"""Quantized checkpoints in the layout of the published code, made from networks of ours."""

import re

import torch

from adabm_basicsr import calibrate
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.calibration.clipping import clip

COMMON = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 2, "img_range": 255.0}
NETWORKS = {
    "EDSR": {
        **COMMON,
        "type": "EDSR",
        "upscale": 2,
        "res_scale": 1.0,
        "rgb_mean": [0.4488, 0.4371, 0.404],
    },
    "EDSR x4": {
        **COMMON,
        "type": "EDSR",
        "upscale": 4,
        "res_scale": 1.0,
        "rgb_mean": [0.0, 0.0, 0.0],
        "num_block": 1,
    },
    "EDSR x3": {
        **COMMON,
        "type": "EDSR",
        "upscale": 3,
        "res_scale": 0.5,
        "rgb_mean": [0.5, 0.25, 0.125],
    },
    "RDN": {**COMMON, "type": "RDN", "upscale": 2, "num_conv": 3, "num_grow_ch": 6},
    "RDN x3": {
        **COMMON,
        "type": "RDN",
        "upscale": 3,
        "num_conv": 2,
        "num_grow_ch": 5,
        "num_block": 3,
    },
    "RDN x4": {
        **COMMON,
        "type": "RDN",
        "upscale": 4,
        "num_conv": 1,
        "num_grow_ch": 4,
        "num_block": 1,
    },
    "SRResNet": {**COMMON, "type": "SRResNet", "upscale": 4},
    "SRResNet x2": {**COMMON, "type": "SRResNet", "upscale": 2, "num_block": 1},
    "SRResNet x3": {**COMMON, "type": "SRResNet", "upscale": 3, "num_block": 3},
}


def ready_network(network, **options):
    """A calibrated and clipped network of ours, each learned number different."""
    torch.manual_seed(0)
    net = AdaBMNetwork(network=network, recipe="paper", **options)
    images = torch.rand(4, 3, 12, 12)
    clip(calibrate(net, [images]), images)
    with torch.no_grad():
        for layer in net.layers().values():
            if layer.input_quantizer.adaptive:
                layer.input_quantizer.layer_factor.add_(0.3 * torch.randn(1))
    return net


def to_published(net, network):
    """State dict of ``net`` in the published layout."""
    names = [
        (r"^network\.", ""),
        (r"input_quantizer\.(lower|upper)$", r"\1_a"),
        (r"input_quantizer\.layer_factor$", "measure_layer"),
        (r"weight_quantizer\.upper$", "upper_w"),
        (r"^image_mapping\.lower$", "measure_l"),
        (r"^image_mapping\.upper$", "measure_u"),
    ]
    if network["type"] == "EDSR":
        names += [
            (r"^conv_first\.", "head.0."),
            (r"^conv_after_body\.", f"body.{network['num_block']}."),
            (r"^upsample\.", "tail.0."),
            (r"^conv_last\.", "tail.1."),
        ]
    state = {}
    for key, value in net.state_dict().items():
        published = key
        for pattern, replacement in names:
            published = re.sub(pattern, replacement, published)
        state[published] = value
    del state["layer_bits"], state["stage"]
    if any(network.get("rgb_mean", [])):
        shift = 255 * torch.tensor(network["rgb_mean"])
        for name, sign in (("sub_mean", -1), ("add_mean", 1)):
            state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
            state[f"{name}.bias"] = sign * shift
    return state
