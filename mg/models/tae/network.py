"""The temporal autoencoder (TAE): videos to 8x8x8 compressed latents and back (Movie Gen, 3.1.1)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from jaxtyping import Float
from mindspore import Tensor, mint, nn

from mg import device
from mg.models.tae.adapter import DEAD_TENSORS, PREFIXES
from mg.models.tae.config import TAE_CONFIG, TaeConfig
from mg.models.tae.init import initialise
from mg.models.tae.modules import Conv2_5d, Decoder, Encoder
from mg.models.tae.tiling import Blend, Grid, Tiles
from mg.ops import crop, pad_edge, pad_zero
from mg.rng import stream
from mg.weights import check_finite, load_into, read_weights

LOGVAR_RANGE = (-30.0, 20.0)


class TemporalAutoencoder(nn.Cell):
    """A variational autoencoder for images (one frame) and videos; 8x compression in time, height and width.

    Videos and latents are (b, c, t, h, w), pixels in [-1, 1]. Latents are not scaled: callers that need unit variance
    use `scale_factor` and `shift_factor` as `(z - shift_factor) * scale_factor`.

    Args:
        config: a mapping with the keys of `TAE_CONFIG`; one of `PRESETS`, for instance.
        pretrained: weights to load (.safetensors or .ckpt); None leaves the initialisation.
        use_recompute: keep no activations of the resolution levels for the backward pass, compute them again.
        sample_deterministic: encode returns the mean as z.
        use_tile: encode and decode in tiles of time and space, with memory independent of the video's length.
        encode_tile: frames per tile of the encoder.
        encode_overlap: must be 0, tiles of the encoder do not overlap in time.
        decode_tile: frames per tile of the decoder.
        decode_overlap: frames that neighbouring tiles of the decoder share.
        dtype: fp32, fp16 or bf16: type of the activations; statistics, softmax and moments stay FP32.
        spatial_tile: pixels per tile in height and width when tiling; smaller frames are not cut.
        spatial_overlap: pixels that neighbouring tiles share in height and width.
        seed: seed of the initialisation and of the noise that `encode` draws when none is passed in.

    Raises:
        ValueError: a bad configuration or tile size; a weights file that does not fit, with the names listed.
    """

    def __init__(
        self,
        config: Mapping[str, Any] = TAE_CONFIG,
        pretrained: str | None = None,
        use_recompute: bool = False,
        sample_deterministic: bool = False,
        use_tile: bool = False,
        encode_tile: int = 32,
        encode_overlap: int = 0,
        decode_tile: int = 32,
        decode_overlap: int = 16,
        dtype: str = "fp32",
        *,
        spatial_tile: int = 256,
        spatial_overlap: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = TaeConfig.from_mapping(config)
        self.time_compress = self.config.time_compression
        self.spatial_compress = self.config.spatial_compression
        self.out_channels = self.config.z_channels
        self.scale_factor, self.shift_factor = self.config.scaling_factor, self.config.shift_factor
        self.sample_deterministic, self.use_tile = sample_deterministic, use_tile
        self.encode_tile, self.decode_tile, self.decode_overlap = encode_tile, decode_tile, decode_overlap
        self.spatial_tile, self.spatial_overlap = spatial_tile, spatial_overlap
        # How tiles are sent through the network: map_tiles(run, tiles) gives the results in the order of the tiles.
        self.map_tiles: Callable[[Callable, Iterable[np.ndarray]], Iterable[np.ndarray]] = map
        self._check_tiles(encode_overlap)
        self.compute_dtype = device.compute_dtype(dtype)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.use_quant_conv:
            self.quant_conv = Conv2_5d(2 * self.config.z_channels, 2 * self.config.z_channels, 1)
        if self.config.use_post_quant_conv:
            self.post_quant_conv = Conv2_5d(self.config.z_channels, self.config.z_channels, 1)
        self.seed, self._draws = seed, 0
        initialise(self, self.config, seed)
        if pretrained:
            self.load(pretrained)
        if use_recompute:
            for level in (*self.encoder.down, *self.decoder.up):
                level.recompute()
        self._encode_graph = _Method(self, "moments")
        self._decode_graph = _Method(self, "pixels")

    def _check_tiles(self, encode_overlap: int) -> None:
        if encode_overlap != 0:
            raise ValueError(f"encode_overlap={encode_overlap}: tiles of the encoder do not overlap in time; use 0")
        for name in ("encode_tile", "decode_tile", "decode_overlap", "spatial_tile", "spatial_overlap"):
            value, unit = getattr(self, name), self.spatial_compress if "spatial" in name else self.time_compress
            if value < (0 if "overlap" in name else unit) or value % unit:
                raise ValueError(f"{name}={value}: use a multiple of {unit}")
        if self.decode_overlap >= self.decode_tile:
            raise ValueError(f"decode_overlap={self.decode_overlap}: it must be below decode_tile={self.decode_tile}")
        if self.spatial_overlap >= self.spatial_tile:
            raise ValueError(f"spatial_overlap={self.spatial_overlap}: it must be below {self.spatial_tile}")

    def load(self, path: str) -> None:
        """Load weights; prefixes of training wrappers and the reference's dead tensors are dropped.

        Raises:
            ValueError: unreadable file, NaN or Inf in it, or tensors missing, unexpected or of another shape.
        """
        tensors = read_weights(path)
        check_finite(tensors, path)
        load_into(self, tensors, path=path, ignore=DEAD_TENSORS, strip=PREFIXES)

    # The two methods below are pure and run inside graphs, those of training included.

    def moments(
        self, x: Float[Tensor, "b 3 t h w"]
    ) -> tuple[Float[Tensor, "b z t8 h8 w8"], Float[Tensor, "b z t8 h8 w8"]]:
        """Mean and log-variance (within `LOGVAR_RANGE`) of the latent, FP32; sides are padded to multiples of 8."""
        x = pad_edge(pad_edge(x, 3, 0, -x.shape[3] % self.spatial_compress), 4, 0, -x.shape[4] % self.spatial_compress)
        h = self.encoder(x.astype(self.compute_dtype))
        if self.config.use_quant_conv:
            h = self.quant_conv(h)
        mean, logvar = mint.chunk(h.astype(ms.float32), 2, 1)
        return mean, mint.clamp(logvar, LOGVAR_RANGE[0], LOGVAR_RANGE[1])

    def pixels(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b 3 t8 h8 w8"]:
        """Decode all 8 frames per latent frame, FP32, not clipped."""
        h = z.astype(self.compute_dtype)
        if self.config.use_post_quant_conv:
            h = self.post_quant_conv(h)
        return self.decoder(h).astype(ms.float32)

    def construct(
        self, x: Float[Tensor, "b 3 t h w"], noise: Float[Tensor, "b z t8 h8 w8"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruct in one graph: (reconstruction with x's shape, z, mean, logvar)."""
        mean, logvar = self.moments(x)
        z = mean if self.sample_deterministic else mean + mint.exp(0.5 * logvar) * noise
        return crop(self.pixels(z), x.shape[2], x.shape[3], x.shape[4]), z, mean, logvar

    def traced(self, x: Float[Tensor, "b 3 t h w"], noise: Float[Tensor, "b z t8 h8 w8"]) -> tuple[Tensor, ...]:
        """As `construct`, with what the last layer took in as a fifth value, for `last_gradient`."""
        mean, logvar = self.moments(x)
        z = mean if self.sample_deterministic else mean + mint.exp(0.5 * logvar) * noise
        h = z.astype(self.compute_dtype)
        if self.config.use_post_quant_conv:
            h = self.post_quant_conv(h)
        seen = self.decoder.before_last(h)
        pixels = self.decoder.last(seen).astype(ms.float32)
        return crop(pixels, x.shape[2], x.shape[3], x.shape[4]), z, mean, logvar, seen

    def last_gradient(self, seen: Float[Tensor, "b 3 t8 h8 w8"], slope: Float[Tensor, "b 3 t h w"]) -> Tensor:
        """Gradient of the last layer's weight, given the gradient of the (cropped) reconstruction."""
        for axis in (2, 3, 4):
            slope = pad_zero(slope, axis, seen.shape[axis] - slope.shape[axis])
        return self.decoder.conv_out.conv_temp.weight_gradient(seen, self.decoder.conv_out.conv_spat.bias, slope)

    def __call__(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruct x; the noise of the sample is drawn from the seed when it is not passed in."""
        self._check(x, self.config.in_channels, "x")
        if noise is None:
            noise = self._noise(x.shape[0], *self.latent_size(*x.shape[2:]))
        return super().__call__(x, noise)

    def encode(self, x: Float[Tensor, "b 3 t h w"], noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode pixels in [-1, 1] to (z, mean, logvar), each (b, z, ceil(t/8), ceil(h/8), ceil(w/8)), not scaled.

        Args:
            x: any number of frames from 1 up, any height and width.
            noise: standard normal noise of the latent's shape for the sample z; drawn from the seed when left out.
        """
        self._check(x, self.config.in_channels, "x")
        if self.use_tile:
            mean, logvar = self._encode_tiled(x)
        else:
            mean, logvar = self._encode_graph(x)
        if self.sample_deterministic:
            z = mean
        else:
            noise = self._noise(*mean.shape[:1], *mean.shape[2:]) if noise is None else noise
            z = Tensor(mean.asnumpy() + np.exp(0.5 * logvar.asnumpy()) * noise.asnumpy())
        for latent in (z, mean, logvar):
            latent.source_size = tuple(x.shape[3:])
        return z, mean, logvar

    def decode(
        self,
        z: Float[Tensor, "b z t h w"],
        num_target_frames: int | None = None,
        target_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """Decode unscaled latents to pixels, roughly in [-1, 1].

        Args:
            z: latents.
            num_target_frames: keep the first so many frames; all 8 per latent frame when left out. 1 for an image.
            target_size: keep so many rows and columns. When left out, a tensor that came straight from `encode` gives
                the size of the video it was made of, any other one 8 pixels per position.

        Raises:
            ValueError: more frames or pixels asked for than the latents hold.
        """
        self._check(z, self.config.z_channels, "z")
        frames, height, width = (n * c for n, c in zip(z.shape[2:], self._compress, strict=True))
        target = num_target_frames if num_target_frames is not None else frames
        rows, columns = target_size or getattr(z, "source_size", (height, width))
        wanted = {"num_target_frames": (target, frames), "height": (rows, height), "width": (columns, width)}
        for name, (asked, there) in wanted.items():
            if not 1 <= asked <= there:
                raise ValueError(f"{name}={asked}: these latents decode to {there}; ask for 1 to {there}")
        x = self._decode_tiled(z) if self.use_tile else self._decode_graph(z)
        return crop(x, target, rows, columns)

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video."""
        return tuple(-(-n // c) for n, c in zip((frames, height, width), self._compress, strict=True))

    @staticmethod
    def get_latent_size(size: tuple[int, int, int]) -> tuple[int, int, int]:
        """(frames, height, width) of the latent of a video of that size under 8x8x8 compression."""
        return tuple(-(-n // 8) for n in size)

    @property
    def _compress(self) -> tuple[int, int, int]:
        return self.time_compress, self.spatial_compress, self.spatial_compress

    def _check(self, x: Tensor, channels: int, name: str) -> None:
        if x.ndim != 5 or x.shape[1] != channels or min(x.shape) < 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; give (batch, {channels}, frames, height, width)")

    def _noise(self, batch: int, *size: int) -> Tensor:
        self._draws += 1
        shape = (batch, self.config.z_channels, *size)
        return Tensor(stream(self.seed, "tae.sample", self._draws).standard_normal(shape, np.float32))

    def _encode_tiled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        video = x.asnumpy()
        grid = self._grid(*self.latent_size(*video.shape[2:])[1:])
        spans = list(Tiles(video.shape[2], self.encode_tile, 0))
        tiles = (tile for span in spans for tile in grid.cut(self._whole(video, *span), self.spatial_compress))
        results = iter(self.map_tiles(self._moments_numpy, tiles))
        moments = np.concatenate([grid.join(results, 1) for _ in spans], 2)  # (b, 2*z, t8, h8, w8)
        mean, logvar = np.split(moments, 2, 1)
        return Tensor(np.ascontiguousarray(mean)), Tensor(np.ascontiguousarray(logvar))

    def _whole(self, video: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Frames of a span, sides padded to whole latent positions."""
        pad = [(0, 0)] * 3 + [(0, -n % self.spatial_compress) for n in video.shape[3:]]
        span = video[:, :, start:stop]
        return np.pad(span, pad, mode="edge") if any(after for _, after in pad) else span

    def _moments_numpy(self, x: np.ndarray) -> np.ndarray:
        mean, logvar = self._encode_graph(Tensor(np.ascontiguousarray(x)))
        return np.concatenate([mean.asnumpy(), logvar.asnumpy()], 1)

    def _pixels_numpy(self, z: np.ndarray) -> np.ndarray:
        return self._decode_graph(Tensor(np.ascontiguousarray(z))).asnumpy()

    def _decode_tiled(self, z: Tensor) -> Tensor:
        latents, factor = z.asnumpy(), self.time_compress
        grid = self._grid(*latents.shape[3:])
        spans = list(Tiles(latents.shape[2], self.decode_tile // factor, self.decode_overlap // factor))
        tiles = (tile for start, stop in spans for tile in grid.cut(latents[:, :, start:stop], 1))
        results = iter(self.map_tiles(self._pixels_numpy, tiles))
        blend = Blend(2, self.config.tile_blend)
        for i, (start, stop) in enumerate(spans):
            before = (spans[i - 1][1] - start) * factor if i else 0
            after = (stop - spans[i + 1][0]) * factor if i + 1 < len(spans) else 0
            tile = grid.join(results, self.spatial_compress)
            blend.add(tile, start * factor, latents.shape[2] * factor, before, after)
        return Tensor(blend.result())

    def _grid(self, height: int, width: int) -> Grid:
        """Tiles of a latent of so many rows and columns."""
        c = self.spatial_compress
        return Grid(height, width, self.spatial_tile // c, self.spatial_overlap // c, self.config.tile_blend)


class _Method(nn.Cell):
    """Compiles one method of a network as a graph of its own, without owning the network's parameters."""

    def __init__(self, network: nn.Cell, method: str) -> None:
        super().__init__(auto_prefix=False)
        self.function = getattr(network, method)

    def construct(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.function(x)
