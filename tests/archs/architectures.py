"""Every architecture, small, with the scales that are tested; shared checks."""

import numpy as np
import torch

SR = {"num_in_ch": 3, "num_out_ch": 3}
SWINIR = {
    "img_size": 16,
    "window_size": 8,
    "depths": [2, 2],
    "embed_dim": 60,
    "num_heads": [6, 6],
    "mlp_ratio": 2,
}
RCAN = {"num_feat": 16, "num_group": 2, "num_block": 2, "squeeze_factor": 4}
RRDB = {"num_feat": 16, "num_block": 2, "num_grow_ch": 8}
COMPACT = {"num_feat": 16, "num_conv": 6}
RDN = {"num_feat": 16, "num_block": 2, "num_conv": 3, "num_grow_ch": 8}

ARCHITECTURES = {
    "EDSR x2": {"type": "EDSR", **SR, "num_feat": 16, "num_block": 3, "upscale": 2},
    "EDSR x3": {"type": "EDSR", **SR, "num_feat": 16, "num_block": 3, "upscale": 3},
    "EDSR x4": {"type": "EDSR", **SR, "num_feat": 16, "num_block": 3, "upscale": 4},
    "MSRResNet x2": {"type": "MSRResNet", **SR, "num_feat": 16, "num_block": 3, "upscale": 2},
    "MSRResNet x3": {"type": "MSRResNet", **SR, "num_feat": 16, "num_block": 3, "upscale": 3},
    "MSRResNet x4": {"type": "MSRResNet", **SR, "num_feat": 16, "num_block": 3, "upscale": 4},
    "RCAN x2": {"type": "RCAN", **SR, **RCAN, "upscale": 2},
    "RCAN x4": {"type": "RCAN", **SR, **RCAN, "upscale": 4},
    "RRDBNet x1": {"type": "RRDBNet", **SR, **RRDB, "scale": 1},
    "RRDBNet x2": {"type": "RRDBNet", **SR, **RRDB, "scale": 2},
    "RRDBNet x4": {"type": "RRDBNet", **SR, **RRDB, "scale": 4},
    "SRVGGNetCompact x2": {"type": "SRVGGNetCompact", **SR, **COMPACT, "upscale": 2},
    "SRVGGNetCompact x4": {"type": "SRVGGNetCompact", **SR, **COMPACT, "upscale": 4},
    "ECBSR x2": {
        "type": "ECBSR",
        "num_in_ch": 1,
        "num_out_ch": 1,
        "num_block": 4,
        "num_channel": 16,
        "with_idt": False,
        "act_type": "rrelu",
        "scale": 2,
    },
    "ECBSR x4": {
        "type": "ECBSR",
        **SR,
        "num_block": 4,
        "num_channel": 16,
        "with_idt": True,
        "act_type": "prelu",
        "scale": 4,
    },
    "RIDNet x1": {
        "type": "RIDNet",
        "in_channels": 3,
        "mid_channels": 16,
        "out_channels": 3,
        "num_block": 2,
    },
    "SwinIR x2": {"type": "SwinIR", **SWINIR, "upscale": 2, "upsampler": "pixelshuffledirect"},
    "SwinIR x4": {
        "type": "SwinIR",
        **SWINIR,
        "upscale": 4,
        "upsampler": "nearest+conv",
        "resi_connection": "3conv",
    },
    "SwinIR x4 (classical)": {
        "type": "SwinIR",
        **SWINIR,
        "upscale": 4,
        "upsampler": "pixelshuffle",
    },
    "SwinIR x1": {
        "type": "SwinIR",
        **SWINIR,
        "img_size": 14,
        "window_size": 7,
        "in_chans": 1,
        "img_range": 255.0,
        "upscale": 1,
        "upsampler": "",
    },
    "RDN x2": {"type": "RDN", **SR, **RDN, "upscale": 2},
    "RDN x3": {"type": "RDN", **SR, **RDN, "upscale": 3},
    "RDN x4": {"type": "RDN", **SR, **RDN, "upscale": 4},
    "SRResNet x2": {"type": "SRResNet", **SR, "num_feat": 16, "num_block": 3, "upscale": 2},
    "SRResNet x4": {"type": "SRResNet", **SR, "num_feat": 16, "num_block": 3, "upscale": 4},
}

VIDEO_ARCHITECTURES = {
    "BasicVSR": {"type": "BasicVSR", "num_feat": 8, "num_block": 1},
    "IconVSR": {"type": "IconVSR", "num_feat": 8, "num_block": 1},
    "BasicVSR++": {"type": "BasicVSRPlusPlus", "mid_channels": 8, "num_blocks": 1},
    "EDVR": {
        "type": "EDVR",
        "num_feat": 8,
        "deformable_groups": 4,
        "num_extract_block": 1,
        "num_reconstruct_block": 2,
    },
    "DUF": {"type": "DUF", "num_layer": 16},
    "TOFlow": {"type": "TOFlow"},
}


def assert_255_inside(net, first, last):
    """Pixels are 0..1 outside of ``net``, 0..255 where they enter ``first`` and leave ``last``."""
    image, seen = torch.rand(1, 3, 8, 8), {}
    first.register_forward_pre_hook(lambda _, args: seen.update(first=args[0]))
    last.register_forward_hook(lambda _, args, output: seen.update(last=output))
    with torch.no_grad():
        output = net(image)
    torch.testing.assert_close(seen["first"], image * 255)
    torch.testing.assert_close(output, seen["last"] / 255)


def assert_published_output(net, outputs, name, tag):
    """``net`` gives the published code's full-precision output."""
    with torch.no_grad():
        output = net(torch.from_numpy(outputs["test_lr_255"]) / 255).numpy() * 255
    expected = outputs[f"{name}/{tag}/fp_sr"]
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
