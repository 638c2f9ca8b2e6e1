"""Restoring a large image from file to file in pieces, so that memory is set by the piece and not by the image.

It is the restoration of `Restorer`, in this order: encode window by window, denoise tile by tile, decode window by
window, align colours and write row by row. Between the steps only latents are kept, in a file without a name in the
folder of the result. What is exact, and what is not:

- Enlarging, resizing, the posterior draw, the denoiser's tiles, wavelet alignment and AdaIN give what they give on the
  whole image, but for rounding. Halos are as wide as the convolutions of the VAE look.
- Group normalisation needs statistics of the whole image, see `tsd.restore.pooled_norm`: they are the same for all
  windows, and nearly those of the whole.
- Attention inside a VAE (SD3's and SD2's; the mini models have none) looks at the window in place of the image.
  Windows are cross-faded there.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from tsd.config import enlarged_size
from tsd.console.stages import DECODE, ENCODE, TILES, WRITE, Progress, silent
from tsd.errors import UserError, is_out_of_memory
from tsd.fast.mean import encode_mean
from tsd.files import full_disk_explained, require_room
from tsd.images import Picture, Scan, in_gray
from tsd.restore.color import EPS, LEVELS, wavelet
from tsd.restore.pooled_norm import PooledNorms
from tsd.restore.resampling import Taps, pillow_taps, plain_taps
from tsd.restore.restorer import SMALLEST_SIDE, Restorer
from tsd.restore.tiling import gaussian_weights, tile_grid
from tsd.restore.windows import BAND, Span, joined_rows, receptive_field, scaled, spans
from tsd.seeds import seed_for
from tsd.writing import RowWriter, check_size, written_rows

TOLERANCE = 0.01
"""Statistics of group normalisation are measured anew until none moves by more than this share of a deviation."""
ESTIMATE_SIDE = 32
"""Side of the small windows of the estimate, in latent positions."""
FADE = 8
"""Latent positions over which windows are cross-faded where a VAE has attention."""
BLUR_REACH = 2**LEVELS - 1
"""Pixels that wavelet alignment looks to each side: 1 + 2 + 4 + 8 + 16."""
COLUMNS = 2048
"""Columns that are aligned together."""
DRAWN = 2**20
"""Values of the posterior's draw that are made together, a multiple of 16."""


def restore_file(
    restorer: Restorer,
    scan: Scan,
    target: Path,
    name: str = "",
    *,
    window: int,
    progress: Progress = silent,
    text: str | None = None,
) -> tuple[str, ...]:
    """Restores a decoded image into a file, in pieces; returns notes on what the format cannot hold.

    Args:
        scan: the image, held in whole numbers (`tsd.images.read_scan`).
        target: the result, complete or not there. PNG and TIFF are written as the rows come; other formats hold the
            image at 8 bits.
        name: seeds the posterior draw together with the settings' seed, as for `Restorer`.
        window: side of the windows that encoder and decoder see, in latent positions (`smallest_window` or more).
        progress: called with (stage, windows or tiles or rows done, in all), see `tsd.console.stages`.
        text: written into a PNG, see `tsd.writing`.

    Raises:
        UserError: an unusable size, a window that is too small, or values that are NaN or infinite.
    """
    width, height = scan.size
    if min(width, height) < SMALLEST_SIDE:
        raise UserError(f"the input is {width}x{height}; expected sides of {SMALLEST_SIDE} or more")
    least = smallest_window(restorer)
    if window < least:
        raise UserError(f"pieces of {window} latent positions are too small for this model; expected {least} or more")
    size = enlarged_size(width, height, restorer.config.scale)
    check_size(*size, target, scan.levels.shape[2] * scan.depth // 8)
    target.parent.mkdir(parents=True, exist_ok=True)
    _require_room(restorer, scan, target.parent)
    with (
        torch.inference_mode(),
        _whole_windows(restorer.backbone.vae),
        full_disk_explained(target),
        ExitStack() as files,
        written_rows(target, *size, text) as writer,
    ):
        try:
            _Restoration(restorer, scan, name, window, progress, target.parent, files).write(writer)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"not enough memory on {restorer.backbone.device} for pieces of "
                    f"{window * restorer.backbone.vae_factor} pixels; give --memory with fewer GB"
                ) from error
            raise
    return writer.notes


def _require_room(restorer: Restorer, scan: Scan, folder: Path) -> None:
    """Refuses a folder that could not take what is kept between the steps.

    Raises:
        UserError: says how much that is.
    """
    config, vae = restorer.config, restorer.backbone.vae
    positions = math.prod(restorer.processing_size(*scan.size)) // restorer.backbone.vae_factor**2
    needed = 4 * vae.config["latent_channels"] * positions * (2 if config.posterior == "sample" else 1)
    needed += 3 * math.prod(enlarged_size(*scan.size, config.scale)) if config.color == "adain" else 0
    require_room(folder, needed, "restoring in pieces keeps that besides the result; choose another folder")


def smallest_window(restorer: Restorer) -> int:
    """The least side of a window in latent positions: as much inside it as its halos and fades take."""
    fade = FADE if _has_attention(restorer) else 0
    return 2 * (2 * max(_halos(restorer)) + fade)


def _halos(restorer: Restorer) -> tuple[int, int]:
    """The receptive fields of encoder and decoder, in latent positions."""
    vae, factor = restorer.backbone.vae, restorer.backbone.vae_factor
    encoder = [vae.encoder.conv_in, *vae.encoder.down_blocks, vae.encoder.mid_block, vae.encoder.conv_out]
    decoder = [vae.decoder.conv_in, vae.decoder.mid_block, *vae.decoder.up_blocks, vae.decoder.conv_out]
    if restorer.decoder is not None:
        decoder = [restorer.decoder.network]
    return math.ceil(receptive_field(encoder) / factor), receptive_field(decoder)


def _has_attention(restorer: Restorer) -> bool:
    return any(isinstance(module, Attention) for module in restorer.backbone.vae.modules())


@contextmanager
def _whole_windows(vae: Any) -> Iterator[None]:
    """Switches diffusers' own tiling of the VAE off inside the block."""
    before = vae.use_tiling
    vae.use_tiling = False
    try:
        yield
    finally:
        vae.use_tiling = before


class _RowFile:
    """Rows of numbers in a file without a name, which vanishes with the process.

    A plain file and no memory map, whose pages would count as the process's memory.
    """

    def __init__(self, folder: Path, files: ExitStack, shape: tuple[int, ...], dtype: type) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.row_bytes = math.prod(shape) * self.dtype.itemsize
        self.file: IO[bytes] = files.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115

    def write(self, top: int, rows: np.ndarray) -> None:
        self.file.seek(top * self.row_bytes)
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)

    def read(self, top: int, bottom: int) -> np.ndarray:
        """(bottom − top, *shape)."""
        rows = np.empty((bottom - top, *self.shape), self.dtype)
        self.file.seek(top * self.row_bytes)
        self.file.readinto(rows.data.cast("B"))  # pyright: ignore[reportAttributeAccessIssue]
        return rows


class _Passing:
    """Rows of an image, (C, n, width), that pass by: appended at the bottom, dropped at the top."""

    def __init__(self) -> None:
        self.top, self.rows = 0, torch.empty(0)

    @property
    def bottom(self) -> int:
        return self.top + (self.rows.shape[1] if self.rows.numel() else 0)

    def append(self, rows: Tensor) -> None:
        self.rows = torch.cat([self.rows, rows], dim=1) if self.rows.numel() else rows

    def take(self, first: int, last: int) -> Tensor:
        """Rows first … last − 1 of the image."""
        return self.rows[:, first - self.top : last - self.top]

    def drop(self, before: int) -> None:
        self.rows, self.top = self.rows[:, before - self.top :].clone(), before


class _Restoration:
    """One image on its way through the networks."""

    def __init__(
        self,
        restorer: Restorer,
        scan: Scan,
        name: str,
        window: int,
        progress: Progress,
        folder: Path,
        files: ExitStack,
    ) -> None:
        self.restorer, self.scan, self.window = restorer, scan, window
        self.config, self.backbone = restorer.config, restorer.backbone
        self.device, self.dtype = self.backbone.device, self.backbone.dtype
        self.factor = self.backbone.vae_factor
        self.new_file: Callable[[tuple[int, ...], type], _RowFile] = partial(_RowFile, folder, files)
        self.seed = seed_for(self.config.seed, "posterior", name)
        width, height = scan.size
        self.width, self.height = enlarged_size(width, height, self.config.scale)
        self.work_width, self.work_height = restorer.processing_size(width, height)
        self.latent = (self.work_height // self.factor, self.work_width // self.factor)
        self.channels = self.backbone.vae.config["latent_channels"]
        # Of the input: enlarged plainly for the network, and as a reference of the result's size.
        self.enlarged = plain_taps(height, self.work_height), plain_taps(width, self.work_width)
        self.reference = pillow_taps(height, self.height), pillow_taps(width, self.width)
        self.resized = pillow_taps(self.work_height, self.height), pillow_taps(self.work_width, self.width)
        encoder, decoder = _halos(restorer)
        self.encoder_windows, self.decoder_windows = self._windows(encoder), self._windows(decoder)
        self.tiles = self._tiles()
        self.progress = progress
        self.stage, self.done, self.steps = "", 0, 0

    def write(self, writer: RowWriter) -> None:
        """Restores the image into `writer`."""
        latents = self.new_file((self.channels, self.latent[1]), np.float32)
        self._encode(latents)
        self._denoise(latents)
        neutral, top = self.scan.is_neutral(), 0
        for rows in self._aligned(self._decoded(latents)):
            rows = rows.clamp(0, 1).cpu()
            step = max(1, 2**20 // self.width)
            for first in range(0, rows.shape[1], step):
                part = rows[:, first : first + step]
                writer.write(self._picture(part, top + first, neutral))
            top += rows.shape[1]
            if self.stage == DECODE and self.done == self.steps:  # what is written between windows is no stage
                self._begin(WRITE, self.height)
            if self.stage == WRITE:
                self.progress(WRITE, top, self.height)

    def _windows(self, halo: int) -> tuple[list[Span], list[Span]]:
        """Rows and columns of windows over the latent."""
        fade = FADE if _has_attention(self.restorer) else 0
        rows, columns = (spans(length, self.window, halo, fade) for length in self.latent)
        return rows, columns

    def _tiles(self) -> tuple[list[Span], list[Span]] | None:
        """Rows and columns of the denoiser's tiles as `Restorer` lays them; None where it takes the latent whole."""
        tile = self.restorer.tile_side(*self.latent)
        if tile is None:
            return None
        side, *starts = tile_grid(*self.latent, tile, self.config.tile_overlap)
        rows, columns = ([Span(start, start + side, torch.ones(side)) for start in line] for line in starts)
        return rows, columns

    # -- The networks

    def _encode(self, latents: _RowFile) -> None:
        """Writes z_L."""
        vae = self.backbone.vae
        noise = self._noise() if self.config.posterior == "sample" else None

        def encode(row: Span, column: Span) -> Tensor:
            x = self._pixels(row, column)
            if noise is None:
                return encode_mean(self.backbone, x)
            moments = vae.encoder(x)
            gaussian = DiagonalGaussianDistribution(moments if vae.quant_conv is None else vae.quant_conv(moments))
            return (gaussian.mean + gaussian.std * noise(row, column)) * vae.config["scaling_factor"]

        rows, columns = self.encoder_windows
        self._begin(ENCODE, len(rows) * len(columns))
        norms = PooledNorms(vae.encoder)
        with norms.in_use():
            self._settle(norms, vae.encoder, self._pixels, rows, columns, unit=self.factor)
            for top, z in joined_rows(self._counted(encode), rows, columns):
                latents.write(top, z.permute(1, 0, 2).cpu().numpy())

    def _denoise(self, latents: _RowFile) -> None:
        """Overwrites z_L by ẑ: the rows of a tile are written when no later tile reads them."""
        if self.tiles is None:
            row, column = (Span(0, length, torch.ones(length)) for length in self.latent)
            z = self._latent_window(latents, row, column)
            z_hat = self.restorer._one_step(z, self.progress)
            latents.write(0, z_hat[0].float().permute(1, 0, 2).cpu().numpy())
            return
        rows, columns = self.tiles
        self._begin(TILES, len(rows) * len(columns))
        side = rows[0].stop
        weights = gaussian_weights(side).to(self.device, torch.float32)

        def denoise(row: Span, column: Span) -> Tensor:
            return self.restorer._one_step_padded(self._latent_window(latents, row, column))

        for top, z in joined_rows(self._counted(denoise), rows, columns, lambda row, column: weights):
            latents.write(top, z.to(self.dtype).float().permute(1, 0, 2).cpu().numpy())

    def _decoded(self, latents: _RowFile) -> Iterator[Tensor]:
        """Rows (3, n, work width) in [0, 1]."""
        network = self.backbone.decode if self.restorer.decoder is None else self.restorer.decoder
        take = partial(self._latent_window, latents)
        rows, columns = self.decoder_windows
        self._begin(DECODE, len(rows) * len(columns))

        def decode(row: Span, column: Span) -> Tensor:
            decoded = network(take(row, column, self.factor)).float()
            self.restorer._require_finite(decoded)
            return decoded.clamp(-1, 1) / 2 + 0.5

        norms = PooledNorms(self.backbone.vae.decoder if self.restorer.decoder is None else self.restorer.decoder)
        with norms.in_use():
            self._settle(norms, network, take, rows, columns, unit=1)
            rows, columns = ([scaled(span, self.factor) for span in line] for line in (rows, columns))
            for _, image in joined_rows(self._counted(decode), rows, columns):
                yield image

    def _settle(
        self,
        norms: PooledNorms,
        network: Callable[[Tensor], Tensor],
        take: Callable[[Span, Span], Tensor],
        rows: list[Span],
        columns: list[Span],
        unit: int,
    ) -> None:
        """Finds the statistics of a network's group normalisations, see `tsd.restore.pooled_norm`.

        Args:
            take: what the network sees of a window.
            unit: positions of the network's input for each latent position.
        """
        if not norms.norms:
            return
        norms.mode = "estimate"
        if len(rows) * len(columns) == 1:  # the whole image: its own statistics, as they come
            norms.see((unit * rows[0].stop, unit * columns[0].stop), (slice(None), slice(None)))
            return
        (height, width), side = self.latent, min(ESTIMATE_SIDE, *self.latent)
        inner = slice(unit * side // 4, unit * side - unit * side // 4)
        norms.see((unit * side, unit * side), (inner, inner))
        count = max(1, min(self.window**2 // side**2, height * width // side**2))
        network(torch.cat([take(*place) for place in _spread(height, width, side, count)]))
        norms.mode = "measure"
        for _ in norms.norms:  # after as many passes all are exact
            self.steps += len(rows) * len(columns)
            for row in rows:
                for column in columns:
                    shape = (unit * (row.stop - row.start), unit * (column.stop - column.start))
                    norms.see(shape, (_times(unit, row.core), _times(unit, column.core)))
                    network(take(row, column))
                    self._step()
            if norms.update() <= TOLERANCE:
                break
        norms.mode = "apply"

    # -- What the networks see

    def _pixels(self, row: Span, column: Span) -> Tensor:
        """The enlarged input in [-1, 1] that the encoder sees of a window given in latent positions."""
        top, bottom = self.factor * row.start, self.factor * row.stop
        left, right = self.factor * column.start, self.factor * column.stop
        layout = torch.channels_last if self.restorer.fast.channels_last else torch.contiguous_format
        x = self._resized_input(self.enlarged, top, bottom, left, right, clamp=False)[None]
        return (2 * x - 1).clamp(-1, 1).to(self.dtype, memory_format=layout)

    def _resized_input(
        self, taps: tuple[Taps, Taps], top: int, bottom: int, left: int, right: int, clamp: bool
    ) -> Tensor:
        """A window (3, bottom − top, right − left) of the resized input; `clamp`: to [0, 1] after each direction."""
        first, last = taps[0].read(top, bottom)
        begin, end = taps[1].read(left, right)
        color = self.scan.rows(first, last).color[:, begin:end]
        image = torch.from_numpy(color).permute(2, 0, 1).to(self.device)
        for dim, line, start, stop, offset in ((2, taps[1], left, right, begin), (1, taps[0], top, bottom, first)):
            image = line.apply(image, dim, start, stop, offset)
            image = image.clamp(0, 1) if clamp else image
        return image

    def _latent_window(self, latents: _RowFile, row: Span, column: Span, unit: int = 1) -> Tensor:
        """(1, C, height, width) of a window given in parts of a latent position, `unit` for each."""
        z = torch.from_numpy(latents.read(row.start // unit, row.stop // unit))
        z = z[..., column.start // unit : column.stop // unit]
        return z.permute(1, 0, 2)[None].to(self.device, self.dtype).contiguous()

    def _noise(self) -> Callable[[Span, Span], Tensor]:
        """The posterior's draw for the whole image, of which windows are returned.

        torch fills a large tensor sixteen values at a time, so that drawing it in parts gives the same values.
        """
        height, width = self.latent
        file, total, part = self.new_file((), np.float32), self.channels * height * width, DRAWN
        generator, first = torch.Generator().manual_seed(self.seed), 0
        while first < total:
            count = total - first if total - first < part + 16 else part
            file.write(first, torch.randn(count, generator=generator, dtype=self.dtype).float().numpy())
            first += count

        def window(row: Span, column: Span) -> Tensor:
            lines = [
                file.read((channel * height + row.start) * width, (channel * height + row.stop) * width)
                for channel in range(self.channels)
            ]
            whole = torch.from_numpy(np.stack(lines)).view(1, self.channels, -1, width)
            return whole[..., column.start : column.stop].to(self.device, self.dtype)

        return window

    # -- Rows of the result

    def _aligned(self, decoded: Iterator[Tensor]) -> Iterator[Tensor]:
        """Rows (3, n, width) of the result with colours aligned as the settings say, not clamped."""
        if self.config.color == "adain":
            return self._adain(decoded)
        resized = self._resized_rows(decoded)
        return self._wavelet(resized) if self.config.color == "wavelet" else resized

    def _resized_rows(self, decoded: Iterator[Tensor]) -> Iterator[Tensor]:
        """`tsd.restore.restorer.resize` row by row: to the width, then to the height."""
        down, across = self.resized
        held, done, needed = _Passing(), 0, down.index.max(dim=1).values
        for band in decoded:
            if self.work_width != self.width:
                band = across.apply(band, 2, 0, self.width).clamp(0, 1)
            if self.work_height == self.height:
                yield band
                continue
            held.append(band)
            ready = int((needed < held.bottom).sum())
            if ready > done:
                first, last = down.read(done, ready)
                yield down.apply(held.take(first, last), 1, done, ready, first).clamp(0, 1)
                done = ready
            if done < self.height:
                held.drop(min(down.read(done, done + 1)[0], held.bottom))

    def _wavelet(self, images: Iterator[Tensor]) -> Iterator[Tensor]:
        held, done = _Passing(), 0
        for band in images:
            held.append(band)
            ready = held.bottom if held.bottom == self.height else held.bottom - BLUR_REACH
            if ready <= done:
                continue
            top, bottom = max(done - BLUR_REACH, 0), min(ready + BLUR_REACH, self.height)
            image, aligned = held.take(top, bottom), []
            for column in spans(self.width, COLUMNS, BLUR_REACH):
                reference = self._resized_input(self.reference, top, bottom, column.start, column.stop, clamp=True)
                part = wavelet(image[None, :, :, column.start : column.stop], reference[None])[0]
                aligned.append(part[:, done - top : ready - top, column.core])
            yield torch.cat(aligned, dim=2)
            done = ready
            held.drop(max(done - BLUR_REACH, 0))

    def _adain(self, decoded: Iterator[Tensor]) -> Iterator[Tensor]:
        """AdaIN needs mean and variance of the whole: the decoded rows wait in a file, truncated to 8 bits."""
        file = self.new_file((self.width, 3), np.uint8)
        own, reference = _Moments(), _Moments()
        top = 0
        for rows in self._truncated(decoded):
            file.write(top, rows)
            own.add(rows / 255.0)
            top += len(rows)
        for top in range(0, self.scan.size[1], BAND):
            reference.add(self.scan.rows(top, top + BAND).color)
        ratio = ((reference.variance + EPS) / (own.variance + EPS)).sqrt()
        for top in range(0, self.height, BAND):
            rows = torch.from_numpy(file.read(top, min(top + BAND, self.height))).permute(2, 0, 1).float() / 255
            yield (rows - own.mean.float()) * ratio.float() + reference.mean.float()

    def _truncated(self, decoded: Iterator[Tensor]) -> Iterator[np.ndarray]:
        """`tsd.restore.restorer.truncate_to_8_bits` row by row: (n, width, 3) uint8."""
        scale = self.work_height / self.height
        reach = math.ceil(2 * max(scale, 1)) + 1
        held, done = _Passing(), 0
        for band in decoded:
            levels = (band * 255).to("cpu", torch.uint8)
            if (self.work_width, self.work_height) == (self.width, self.height):
                yield levels.permute(1, 2, 0).numpy()
                continue
            held.append(levels)
            whole = held.bottom == self.work_height
            ready = self.height if whole else math.floor((held.bottom - reach) / scale)
            if ready > done:
                first = max(math.floor(done * scale) - reach, 0)
                picture = Image.fromarray(held.take(first, held.bottom).permute(1, 2, 0).contiguous().numpy())
                bottom = min(ready * scale - first, picture.height)
                box = (0, done * scale - first, self.work_width, bottom)
                yield np.array(picture.resize((self.width, ready - done), box=box))
                done = ready
                held.drop(max(math.floor(done * scale) - reach, 0))

    def _picture(self, rows: Tensor, top: int, neutral: bool) -> Picture:
        """Rows of the result as a picture with what the input has besides colours; gray where the input was neutral."""
        color = rows.permute(1, 2, 0).contiguous().numpy()
        if neutral:  # as `tsd.images.enlarged`
            color = in_gray(color)
        bottom, alpha, (down, across) = top + rows.shape[1], None, self.reference
        first, last = down.read(top, bottom)
        source = self.scan.rows(first, last)
        if source.alpha is not None:
            wide = across.apply(torch.from_numpy(source.alpha), 1, 0, self.width).clamp(0, 1)
            alpha = down.apply(wide, 0, top, bottom, first).clamp(0, 1).numpy()
        return Picture(color, alpha, source.gray, source.depth, source.icc_profile)

    # -- Progress

    def _begin(self, stage: str, steps: int) -> None:
        """Begins a stage of as many windows or tiles; those that are measured are added, see `_settle`."""
        self.stage, self.done, self.steps = stage, 0, steps
        self.progress(stage, 0, steps)

    def _step(self) -> None:
        self.done += 1
        self.progress(self.stage, self.done, self.steps)

    def _counted(self, compute: Callable[[Span, Span], Tensor]) -> Callable[[Span, Span], Tensor]:
        def counted(row: Span, column: Span) -> Tensor:
            result = compute(row, column)
            self._step()
            return result

        return counted


class _Moments:
    """Mean and unbiased variance of each channel, (3, 1, 1) float64, of rows (n, width, 3) that are added."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, np.zeros(3), np.zeros(3)

    def add(self, rows: np.ndarray) -> None:
        values = rows.astype(np.float64)
        self.count += values.shape[0] * values.shape[1]
        self.sum += values.sum(axis=(0, 1))
        self.squares += np.square(values, out=values).sum(axis=(0, 1))

    @property
    def mean(self) -> Tensor:
        return torch.from_numpy(self.sum / self.count).view(3, 1, 1)

    @property
    def variance(self) -> Tensor:
        spread = self.squares - np.square(self.sum) / self.count
        return torch.from_numpy(spread / (self.count - 1)).view(3, 1, 1)


def _times(unit: int, part: slice) -> slice:
    return slice(unit * part.start, unit * part.stop)


def _spread(height: int, width: int, side: int, count: int) -> Iterator[tuple[Span, Span]]:
    """Square windows spread evenly: the sequence R2, whose steps are the plastic number's powers."""
    plastic = 1.32471795724474602596
    for index in range(count):
        starts = (
            int((0.5 + index / plastic**power) % 1 * (length - side + 1)) for power, length in ((1, height), (2, width))
        )
        top, left = starts
        yield Span(top, top + side, torch.ones(side)), Span(left, left + side, torch.ones(side))
