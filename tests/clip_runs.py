"""Option files of short runs of a recurrent network on clips."""

import torch
from architectures import VIDEO_ARCHITECTURES
from basicsr.archs import build_network
from clip_files import moving, write_frames

from adabm_basicsr.data.prepare_clips import prepare_clips

FRAMES = {"city": 5, "walk": 4}


def of_recurrent(workspace, recipe):
    """Changes of a training run's options; what they name is made."""
    root = workspace.root
    for clip, frames in FRAMES.items():
        write_frames(root / "hr" / clip, moving(frames, 4 * 34, 4 * 36))
    prepare_clips([root / "hr"], 4, root / "film" / "lq", root / "film" / "gt")
    network = VIDEO_ARCHITECTURES["BasicVSR"]
    torch.manual_seed(0)
    torch.save({"params": build_network(dict(network)).state_dict()}, root / "basicvsr.pth")
    return {
        "scale": 4,
        "network_g": {**workspace.network_options(), "network": dict(network), "recipe": recipe},
        "path__pretrain_network_g": "basicvsr.pth",
        "datasets__train__type": "ClipCalibrationDataset",
        "datasets__train__dataroot_lq": "film/lq",
        "datasets__train__lq_size": 34,
        "datasets__train__num_frame": 3,
        "datasets__train__dataset_enlarge_ratio": 2,
    }


def validation():
    """A validation set of these clips."""
    return {
        "name": "Film",
        "type": "VideoRecurrentTestDataset",
        "dataroot_gt": "film/gt",
        "dataroot_lq": "film/lq",
    }
