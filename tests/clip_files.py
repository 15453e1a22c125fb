"""Clips with known motion, as frames and as video files."""

import cv2
from conftest import photograph

FRAME = "{:08d}.png"  # as BasicSR's clips name theirs


def moving(count, height=24, width=32, seed=0):
    """A crop that moves over a picture, 2 pixels a frame to the right: ``(H, W, 3)`` uint8 each."""
    picture = photograph(height, width + 2 * count, seed)
    return [picture[:, 2 * frame : 2 * frame + width] for frame in range(count)]


def write_frames(folder, frames, name=FRAME):
    """Write a PNG for each frame; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / name.format(number)), frame)
    return folder


def write_clips(root, count, frames, height=24, width=32):
    """Write ``count`` clips, folders 000, 001, ... of ``frames`` frames; returns ``root``."""
    for clip in range(count):
        write_frames(root / f"{clip:03d}", moving(frames, height, width, seed=clip))
    return root


def write_video(path, frames, codec="mp4v"):
    """Write a video file; returns its path."""
    height, width = frames[0].shape[:2]
    fourcc = cv2.VideoWriter_fourcc(*codec)
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, 25, (width, height))
    for frame in frames:
        video.write(frame)
    video.release()
    return path
