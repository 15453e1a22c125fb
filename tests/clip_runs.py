"""Option files of short runs of a recurrent network on clips."""

import torch
from clip_files import moving, write_frames
from clip_networks import Recurrent

from adabm_basicsr.data.prepare_clips import prepare_clips

FRAMES = {"city": 5, "walk": 4}


def of_recurrent(workspace, recipe):
    """Changes of a training run's options; what they name is made."""
    root = workspace.root
    for clip, frames in FRAMES.items():
        write_frames(root / "hr" / clip, moving(frames, 64, 80))
    prepare_clips([root / "hr"], 4, root / "film" / "lq", root / "film" / "gt")
    torch.manual_seed(0)
    torch.save({"params": Recurrent().state_dict()}, root / "recurrent.pth")
    return {
        "scale": 4,
        "network_g": {
            **workspace.network_options(),
            "network": {"type": "Recurrent"},
            "custom_imports": ["clip_networks"],
            "recipe": recipe,
        },
        "path__pretrain_network_g": "recurrent.pth",
        "datasets__train__type": "ClipCalibrationDataset",
        "datasets__train__dataroot_lq": "film/lq",
        "datasets__train__lq_size": 16,
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
