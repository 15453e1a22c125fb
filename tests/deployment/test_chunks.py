"""Clips in chunks, with networks that stand in for recurrent and windowed ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_files import FRAME, moving, write_frames, write_video
from faults import FORKS, kill_this_process

from adabm_basicsr import AdaBMError
from adabm_basicsr.deployment.chunks import Chunking, run_chunk, split_clip, upscale_clip

KEPT = 0.4  # of what both directions carry over, from frame to frame


def enlarge(frame):
    return F.interpolate(frame, scale_factor=2, mode="nearest")


def recurrent(clip):
    """Carries over from frame to frame, in both directions."""
    frames = list(clip.unbind(1))
    carried = []
    for ordered in (frames, frames[::-1]):
        state = torch.zeros_like(frames[0])
        states = []
        for frame in ordered:
            state = KEPT * state + (1 - KEPT) * frame
            states.append(state)
        carried.append(states)
    forward, backward = carried
    made = [enlarge((a + b) / 2) for a, b in zip(forward, backward[::-1], strict=True)]
    return torch.stack(made, 1)


def windowed(window):
    """Makes the middle frame of five."""
    assert window.shape[1] == 5
    weights = torch.tensor([1, 2, 4, 2, 1]).view(1, 5, 1, 1, 1) / 10
    return enlarge((weights * window).sum(1))


def frames_of(count):
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in moving(count)]


def upscale_frames(network, frames, chunking):
    for chunk in split_clip(frames, chunking.kept, chunking.reach):
        yield from run_chunk(network, chunk, chunking.window)


def whole(network, frames):
    return np.stack(list(upscale_frames(network, frames, Chunking(1000, 1000))))


@pytest.mark.parametrize("count", [1, 4, 5, 9, 12, 13, 23])
@pytest.mark.parametrize(("chunk", "reach"), [(4, 0), (4, 2), (1, 3), (50, 8)])
def test_every_frame_is_kept_once_with_its_neighbours(count, chunk, reach):
    kept = []
    most = 0
    for part in split_clip(range(count), chunk, reach):
        assert part.count >= 1
        first, last = part.first, part.first + part.count
        kept += part.frames[first:last]
        most = max(most, len(part.frames))
        assert part.first == min(reach, part.frames[first])
        assert len(part.frames) - last == min(reach, count - 1 - part.frames[last - 1])
    assert kept == list(range(count))
    assert most <= chunk + 2 * reach


def test_no_more_frames_are_read_than_a_chunk_needs():
    read = []

    def frames():
        for number in range(100):
            read.append(number)
            yield number

    chunks = split_clip(frames(), 4, 2)
    next(chunks)
    assert len(read) <= 4 + 2 + 1


def psnr(first, second):
    error = ((first.astype(float) - second) ** 2).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_a_recurrent_network_in_chunks_agrees_with_the_whole_clip():
    frames = frames_of(30)
    expected = whole(recurrent, frames)
    assert expected.shape == (30, 48, 64, 3)
    found = np.stack(list(upscale_frames(recurrent, frames, Chunking())))
    assert psnr(found, expected) > 45
    cut = np.stack(list(upscale_frames(recurrent, frames, Chunking(overlap=0))))
    assert psnr(cut, expected) < 45


def test_windows_in_chunks_are_those_of_the_whole_clip():
    from basicsr.data.data_util import generate_frame_indices

    frames = frames_of(11)
    found = np.stack(list(upscale_frames(windowed, frames, Chunking(1, window=5))))
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    for number in range(11):
        indices = generate_frame_indices(number, 11, 5, "reflection")
        made = windowed(clip[indices][None])[0].permute(1, 2, 0)
        assert np.array_equal(found[number], (made * 255).round().byte().numpy())


def upscaled(network, source, out, chunking=None, **options):
    """How many frames were written."""
    return len(list(upscale_clip(network, source, out, chunking or Chunking(), **options)))


def read_all(folder):
    return np.stack([cv2.imread(str(path))[..., ::-1] for path in sorted(folder.iterdir())])


def test_a_folder_of_frames_and_a_video(tmp_path):
    frames = frames_of(10)
    folder = write_frames(tmp_path / "clip", moving(10), "{}.png")
    pixels = list(upscale_clip(recurrent, folder, tmp_path / "out", Chunking()))
    assert pixels == [48 * 64] * 10
    assert np.array_equal(
        read_all(tmp_path / "out"),
        np.stack(list(upscale_frames(recurrent, frames, Chunking()))),
    )
    film = write_video(tmp_path / "film.mp4", moving(6, 48, 64))
    assert upscaled(windowed, film, tmp_path / "film", Chunking(window=5)) == 6
    assert read_all(tmp_path / "film").shape == (6, 96, 128, 3)


def test_a_run_that_stopped_goes_on(tmp_path):
    folder = write_frames(tmp_path / "clip", moving(9))
    upscaled(recurrent, folder, tmp_path / "out", Chunking(3, 2))
    expected = read_all(tmp_path / "out")
    (tmp_path / "out" / FRAME.format(4)).unlink()
    kept = tmp_path / "out" / FRAME.format(3)
    made_at = kept.stat().st_mtime_ns
    calls = []

    def counted(clip):
        calls.append(clip.shape[1])
        return recurrent(clip)

    assert upscaled(counted, folder, tmp_path / "out", Chunking(3, 2)) == 1
    assert calls == [7]
    assert kept.stat().st_mtime_ns == made_at
    assert np.array_equal(read_all(tmp_path / "out"), expected)
    assert upscaled(recurrent, folder, tmp_path / "out", Chunking(3, 2), overwrite=True) == 9


def upscale_and_die(source, out):
    """Kill this process half-way through the fifth frame that is written."""
    original, written = Path.write_bytes, []

    def write_bytes(path, content):
        written.append(path)
        if len(written) == 5:
            original(path, content[: len(content) // 2])
            kill_this_process()
        return original(path, content)

    Path.write_bytes = write_bytes
    upscaled(recurrent, source, out, Chunking(2, 2))


def test_a_run_that_was_killed_goes_on(tmp_path):
    folder = write_frames(tmp_path / "clip", moving(9))
    out = tmp_path / "out"
    child = FORKS.Process(target=upscale_and_die, args=(folder, out))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert sorted(path.name for path in out.glob("[!.]*")) == [FRAME.format(i) for i in range(4)]
    assert upscaled(recurrent, folder, out, Chunking(2, 2)) == 5
    assert sorted(path.name for path in out.iterdir()) == [FRAME.format(i) for i in range(9)]
    upscaled(recurrent, folder, tmp_path / "whole", Chunking(2, 2))
    assert np.array_equal(read_all(out), read_all(tmp_path / "whole"))


def test_grey_networks(tmp_path):
    coloured = moving(3)
    frames = [frame[..., 1:2] for frame in coloured]
    clip = write_frames(tmp_path / "clip", frames)
    video = write_video(tmp_path / "film.mp4", [frame.repeat(3, axis=2) for frame in frames])
    for source in (clip, video):
        out = tmp_path / "out" / source.stem
        assert upscaled(recurrent, source, out, channels=1) == 3
        grey = read_all(out)
        assert np.array_equal(grey[..., 0], grey[..., 2])
    write_frames(clip, coloured)
    with pytest.raises(AdaBMError, match="the network takes grey images, this one has colours"):
        upscaled(recurrent, clip, tmp_path / "out" / "other", channels=1)


def test_windows_without_a_middle_frame():
    with pytest.raises(AdaBMError, match=r"^the network takes windows of 4 frames, and an even"):
        Chunking(window=4)


def test_a_clip_shorter_than_the_window(tmp_path):
    folder = write_frames(tmp_path / "clip", moving(3))
    with pytest.raises(AdaBMError, match="the clip has 3 frames, but the network takes windows of"):
        upscaled(windowed, folder, tmp_path / "out", Chunking(window=5))
