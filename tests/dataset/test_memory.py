"""A set of any size takes no more memory the longer it is read: the list stays, and a cache of the size asked for."""

import os

import numpy as np
import pytest

from mg.config.clips import ClipSettings
from mg.dataset.clips import ClipSource
from mg.dataset.manifest import scan_folder
from mg.dataset.prefetch import Prefetcher
from mg.dataset.video_writer import write_video

FILES, BATCH = 10_000, 10


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_ten_thousand_files_are_read_in_constant_memory(tmp_path):
    first = tmp_path / "00000.mp4"
    write_video(first, np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8), 24)
    for number in range(1, FILES):
        os.link(first, tmp_path / f"{number:05d}.mp4")
    settings = ClipSettings(size=(32, 32), num_frames=4, batch_size=BATCH, random_crop=False, flip=False, cache_gb=0.01)
    batches = Prefetcher(ClipSource({"": scan_folder(tmp_path)}, settings), 0, 2, 2)
    seen, used = set(), []
    try:
        for step in range(1, FILES // BATCH + 1):
            seen.update(next(batches)["ids"])
            if step * BATCH % 2000 == 0:
                used.append(resident())
    finally:
        batches.close()
    assert len(seen) == FILES  # one epoch: each of them once
    # The cache is full at the first look; without its limit it would grow by 98 MB to the last, 12 kB per clip.
    assert used[-1] - used[0] < 24, used
