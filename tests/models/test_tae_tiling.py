"""Tiles lie where they should, blend by the formulas, and change nothing for a video that fits into one."""

import numpy as np
import pytest
from mindspore import Tensor

import mg.device
from mg.models.tae.tiling import Blend, Tiles, even_tiles, ramp


@pytest.mark.parametrize(
    "length, expected",
    [
        (1, [(0, 1)]),
        (4, [(0, 4)]),
        (5, [(0, 4), (2, 5)]),
        (6, [(0, 4), (2, 6)]),
        (7, [(0, 4), (2, 6), (4, 7)]),
        (32, [(2 * i, 2 * i + 4) for i in range(15)]),
    ],
)
def test_tiles_of_the_decoder_are_the_reference_ones(length, expected):
    assert list(Tiles(length, 4, 2)) == expected


def test_tiles_without_overlap():
    assert list(Tiles(72, 32, 0)) == [(0, 32), (32, 64), (64, 72)]
    assert list(Tiles(64, 32, 0)) == [(0, 32), (32, 64)]


@pytest.mark.parametrize("size, overlap", [(4, 4), (4, 5), (0, 0), (4, -1)])
def test_tiles_that_never_advance_are_refused(size, overlap):
    with pytest.raises(ValueError, match=f"tile={size}, overlap={overlap}"):
        Tiles(8, size, overlap)


def test_even_tiles_cover_the_axis_with_one_size():
    assert even_tiles(7, 8, 2) == [(0, 7, 0, 0)]
    assert even_tiles(8, 8, 2) == [(0, 8, 0, 0)]
    assert even_tiles(20, 8, 2) == [(0, 8, 0, 2), (6, 14, 2, 2), (12, 20, 2, 0)]
    assert even_tiles(17, 8, 2) == [(0, 8, 0, 2), (6, 14, 2, 5), (9, 17, 5, 0)]
    for length in range(9, 60):
        tiles = even_tiles(length, 8, 3)
        assert tiles[0][0] == 0 and tiles[-1][1] == length
        assert {stop - start for start, stop, _, _ in tiles} == {8}
        for (_, stop, _, after), (start, _, before, _) in zip(tiles, tiles[1:], strict=False):
            assert stop - start == before == after >= 3


def test_ramp_rises_in_equal_steps():
    np.testing.assert_allclose(ramp(6, 3, 0, "linear"), [0.25, 0.5, 0.75, 1, 1, 1])
    np.testing.assert_allclose(ramp(6, 0, 2, "linear"), [1, 1, 1, 1, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(ramp(4, 2, 2, "linear"), [1 / 3, 2 / 3, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(ramp(6, 3, 2, "uniform"), np.ones(6))


@pytest.mark.parametrize("overlap", [1, 2, 7, 16])
def test_weights_of_neighbours_sum_to_one(overlap):
    before, after = ramp(32, 0, overlap, "linear"), ramp(32, overlap, 0, "linear")
    np.testing.assert_allclose(before[-overlap:] + after[:overlap], 1, atol=1e-6)
    assert (np.diff(after[:overlap]) > 0).all() and min(before.min(), after.min()) > 0


@pytest.mark.parametrize("blend", ["linear", "uniform"])
@pytest.mark.parametrize("length, size, overlap", [(20, 8, 4), (21, 8, 4), (20, 8, 6), (8, 8, 4)])
def test_blend_is_the_weighted_mean(blend, length, size, overlap):
    rng, spans = np.random.default_rng(0), list(Tiles(length, size, overlap))
    total, weight, accumulator = np.zeros((2, length, 3)), np.zeros(length), Blend(1, blend)
    for i, (start, stop) in enumerate(spans):
        tile = rng.standard_normal((2, stop - start, 3)).astype(np.float32)
        before = spans[i - 1][1] - start if i else 0
        after = stop - spans[i + 1][0] if i + 1 < len(spans) else 0
        accumulator.add(tile, start, length, before, after)
        for j in range(stop - start):
            w = 1.0
            if blend == "linear":
                w *= (j + 1) / (before + 1) if j < before else 1.0
                w *= (stop - start - j) / (after + 1) if stop - start - j <= after else 1.0
            total[:, start + j] += w * tile[:, j]
            weight[start + j] += w
    np.testing.assert_allclose(accumulator.result(), total / weight[:, None], atol=1e-5)


def test_blend_of_agreeing_tiles_changes_nothing():
    x = np.random.default_rng(1).standard_normal((1, 20)).astype(np.float32)
    accumulator = Blend(1, "linear")
    for start, stop, before, after in even_tiles(20, 8, 3):
        accumulator.add(x[:, start:stop], start, 20, before, after)
    np.testing.assert_allclose(accumulator.result(), x, atol=1e-6)


def test_blend_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no tile"):
        Blend(0, "linear").result()


# ---- the network in tiles


@pytest.fixture(scope="module")
def tiled(build):
    return build(use_tile=True)


@pytest.fixture(scope="module")
def spatial(build):
    return build(use_tile=True, spatial_tile=32, spatial_overlap=16)


def test_encoding_in_tiles_is_encoding_each(pynative, tae, tiled, video):
    x = video(1, 3, 70, 16, 16)
    _, mean, logvar = tiled.encode(Tensor(x))
    parts = [tae.encode(Tensor(np.ascontiguousarray(x[:, :, i : i + 32])))[1:] for i in (0, 32, 64)]
    for got, expected in zip((mean, logvar), zip(*parts, strict=True), strict=True):
        assert got.shape == (1, 4, 9, 2, 2)
        np.testing.assert_array_equal(got.asnumpy(), np.concatenate([part.asnumpy() for part in expected], 2))


def test_short_videos_are_not_cut(pynative, tae, tiled, video):
    x = Tensor(video(2, 3, 32, 13, 16))
    (_, mean, logvar), (_, tile_mean, tile_logvar) = tae.encode(x), tiled.encode(x)
    np.testing.assert_allclose(tile_mean.asnumpy(), mean.asnumpy(), atol=1e-6)
    np.testing.assert_allclose(tile_logvar.asnumpy(), logvar.asnumpy(), atol=1e-6)
    np.testing.assert_array_equal(tiled.decode(mean).asnumpy(), tae.decode(mean).asnumpy())
    assert tiled.decode(tile_mean, num_target_frames=30).shape == (2, 3, 30, 13, 16)


@pytest.mark.parametrize("blend", ["linear", "uniform"])
def test_decoding_in_tiles_blends_them(pynative, small, build, tae, video, blend):
    net = build(dict(small, tile_blend=blend), use_tile=True)
    z = video(1, 4, 7, 1, 2)
    tiles = [tae.decode(Tensor(np.ascontiguousarray(z[:, :, a:b]))).asnumpy() for a, b in ((0, 4), (2, 6), (4, 7))]
    step = (np.arange(16, dtype=np.float32) + 1) / 17 if blend == "linear" else np.full(16, 0.5, np.float32)
    step = step[:, None, None]
    expected = np.concatenate(
        [
            tiles[0][:, :, :16],
            tiles[0][:, :, 16:] * (1 - step) + tiles[1][:, :, :16] * step,
            tiles[1][:, :, 16:] * (1 - step) + tiles[2][:, :, :16] * step,
            tiles[2][:, :, 16:],
        ],
        2,
    )
    got = net.decode(Tensor(z))
    np.testing.assert_allclose(got.asnumpy(), expected, atol=1e-5)
    np.testing.assert_allclose(net.decode(Tensor(z), num_target_frames=50).asnumpy(), expected[:, :, :50], atol=1e-5)


def blended(tiles, axis, length, spans):
    total = weight = 0
    for tile, (start, stop, before, after) in zip(tiles, spans, strict=True):
        w = ramp(stop - start, before, after, "linear")
        shape = [1] * tile.ndim
        shape[axis] = length
        full = np.zeros(shape, np.float32)
        at = [slice(None)] * tile.ndim
        at[axis] = slice(start, stop)
        full[tuple(at)] = w.reshape([-1 if i == axis else 1 for i in range(tile.ndim)])
        placed = np.zeros([length if i == axis else n for i, n in enumerate(tile.shape)], np.float32)
        placed[tuple(at)] = tile
        total, weight = total + full * placed, weight + full
    return total / weight


def test_tiles_of_space_are_blended(pynative, tae, spatial, video):
    # 50 columns are padded to 56, 7 latent positions: tiles of 4 at 0, 2 and 3.
    x = video(1, 3, 2, 32, 50)
    padded = np.pad(x, [(0, 0)] * 4 + [(0, 6)], mode="edge")
    spans = [(0, 4, 0, 2), (2, 6, 2, 3), (3, 7, 3, 0)]
    parts = [tae.encode(Tensor(np.ascontiguousarray(padded[..., 8 * a : 8 * b])))[1].asnumpy() for a, b, *_ in spans]
    _, mean, _ = spatial.encode(Tensor(x))
    np.testing.assert_allclose(mean.asnumpy(), blended(parts, 4, 7, spans), atol=1e-5)

    latent = mean.asnumpy()
    parts = [tae.decode(Tensor(np.ascontiguousarray(latent[..., a:b]))).asnumpy() for a, b, *_ in spans]
    expected = blended(parts, 4, 56, [tuple(8 * n for n in span) for span in spans])
    rec = spatial.decode(mean, num_target_frames=2)
    assert rec.shape == x.shape
    np.testing.assert_allclose(rec.asnumpy(), expected[:, :, :2, :, :50], atol=1e-5)


def test_tiles_of_both_sides(pynative, spatial, video):
    x = Tensor(video(1, 3, 1, 45, 61))
    _, mean, _ = spatial.encode(x)
    assert mean.shape == (1, 4, 1, 6, 8)
    assert spatial.decode(mean, num_target_frames=1).shape == x.shape
    # The corners lie in one tile only.
    corner = spatial.encode(Tensor(np.ascontiguousarray(x.asnumpy()[..., :32, :32])))[1].asnumpy()
    np.testing.assert_allclose(mean.asnumpy()[..., :2, :2], corner[..., :2, :2], atol=1e-5)


# ---- with the shipped weights


@pytest.fixture(scope="module")
def shipped(root):
    from mg.models.tae.loading import from_checkpoint

    return from_checkpoint(str(root / "assets" / "weights" / "tae-tiny.safetensors"))


def reconstruct(net, x, **options):
    """Encode and decode with tiling options changed."""
    before = {name: getattr(net, name) for name in options}
    for name, value in options.items():
        setattr(net, name, value)
    try:
        return net.decode(net.encode(Tensor(x))[1], num_target_frames=x.shape[2]).asnumpy()
    finally:
        for name, value in before.items():
            setattr(net, name, value)


@pytest.fixture(scope="module")
def clip(root):
    """64 frames of 96x96 of a bundled clip that the weights were not trained on."""
    from mg.dataset.transforms import resize_cover_crop, to_tensor
    from mg.dataset.video import read_video

    frames = read_video(root / "assets" / "clips" / "butterfly_02.mp4", range(64))
    return to_tensor(resize_cover_crop(frames, (96, 96)))[None]


@pytest.fixture(scope="module")
def in_time(shipped, clip):
    """The clip through tiles of the default length."""
    mg.device.setup("CPU", "pynative")
    return reconstruct(shipped, clip, use_tile=True)


def steps(video):
    """Mean absolute difference of each frame to the next."""
    return np.abs(np.diff(video.astype(np.float64), axis=2)).mean((0, 1, 3, 4))


@pytest.mark.slow
def test_no_seams_in_time_where_tiles_meet(pynative, shipped, clip, in_time):
    # Tiles of the encoder meet at frame 32, those of the decoder fade in and out around frames 16, 32 and 48.
    whole, tiled = steps(reconstruct(shipped, clip)), steps(in_time)
    seams = [15, 31, 47]
    assert np.abs(tiled - whole).max() > 0
    assert (tiled[seams] <= 1.5 * np.maximum(np.median(tiled), whole[seams])).all()


@pytest.mark.slow
def test_tiles_are_close_to_the_whole(pynative, shipped, clip, in_time):
    from mg.metrics import psnr

    whole = reconstruct(shipped, clip)
    assert psnr(in_time, whole, data_range=2.0) >= 34
    # Tiles cost no quality: they are as close to the original as the whole.
    assert psnr(in_time, clip, data_range=2.0) >= psnr(whole, clip, data_range=2.0) - 0.3
    image = clip[:, :, :1]
    in_space = reconstruct(shipped, image, use_tile=True, spatial_tile=64, spatial_overlap=32)
    whole_image = reconstruct(shipped, image)
    assert psnr(in_space, whole_image, data_range=2.0) >= 35
    assert np.abs(in_space - whole_image).max() > 0
