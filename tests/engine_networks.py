"""Small networks that are written for engines."""

import pytest
from conftest import TINY_EDSR

SR = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16}
NETWORKS = {
    "EDSR": {**TINY_EDSR, "upscale": 4},
    "SRVGGNetCompact": {"type": "SRVGGNetCompact", **SR, "num_conv": 6, "upscale": 2},
    "RRDBNet": {"type": "RRDBNet", **SR, "num_block": 1, "num_grow_ch": 8, "scale": 4},
    "MSRResNet": {"type": "MSRResNet", **SR, "num_block": 2, "upscale": 3},
    "RCAN": {
        "type": "RCAN",
        **SR,
        "num_group": 1,
        "num_block": 2,
        "squeeze_factor": 4,
        "upscale": 2,
    },
}
# The last two are left to CI.
EACH_NETWORK = [
    "EDSR",
    "SRVGGNetCompact",
    "RRDBNet",
    pytest.param("MSRResNet", marks=pytest.mark.slow),
    pytest.param("RCAN", marks=pytest.mark.slow),
]
# Takes multiples of two pixels.
MIRRORING = {**NETWORKS["RRDBNet"], "scale": 2}
