"""Image files written: a `Picture` in one piece, or row by row, so that a large image is never held whole.

PNG and TIFF keep 16 bits; JPEG (quality 95, no chroma subsampling), WebP (lossless) and BMP are 8-bit. Each file is
complete or not there. Pillow and OpenCV write what is in memory. Neither takes rows one after another, so the row
writers of PNG (ISO/IEC 15948) and TIFF (6.0, strips compressed by deflate) are here; a third collects the rows for
the formats that cannot be written in parts.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image

from tsd.files import WRITABLE, atomic_path, full_disk_explained
from tsd.images import ImageError, Picture

DEEP_FORMATS = ("PNG", "TIFF")
ROW_FORMATS = ("PNG", "TIFF")
"""The formats that are written row by row; an image in another one is held at 8 bits until it is complete."""
_LONGEST = {"WEBP": 16383, "JPEG": 65500}
_MOST_BYTES = {"TIFF": 2**32 - 2**20, "BMP": 2**32 - 2**10}
PNG_TEXT = "tsd-sr-bench"
"""The keyword of the text in a PNG that says how it was made."""
PNG_START = 33
"""Bytes of a PNG before the chunks that the standard wants straight after IHDR."""
_PART_BYTES = 2**20
"""About as many bytes of an image are filtered, compressed and written together."""


def write_picture(picture: Picture, path: str | Path, text: str | None = None) -> tuple[str, ...]:
    """Writes a picture atomically, in the format of the suffix; returns notes on what the format cannot hold.

    JPEG has no alpha and most readers ignore BMP's, so for both the picture is laid on white. The 16-bit colour TIFF
    that OpenCV writes carries no colour profile.

    Args:
        text: says how the picture was made, in ASCII. PNG keeps it, under the keyword `PNG_TEXT`; other formats do not.
    """
    path = Path(path)
    kind = format_of(path)
    check_size(*picture.size, path)
    picture, depth, notes = _fitted(picture, kind)
    array = picture.to_uint(depth)
    if depth == 16 and array.ndim == 3:
        if kind == "TIFF" and picture.icc_profile:
            notes.append("the colour profile was not kept: 16-bit colour TIFF cannot carry it here, PNG can")
        data = _encode_deep(array, kind, picture.icc_profile)
    else:
        data = _encode(array, kind, picture.icc_profile)
    if text is not None and kind == "PNG":
        data = data[:PNG_START] + _png_text(text) + data[PNG_START:]
    with full_disk_explained(path, len(data)), atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return tuple(notes)


def check_size(width: int, height: int, path: Path, pixel_bytes: int = 3) -> None:
    """Refuses a size that the format of the suffix cannot hold, so that nobody computes an image in vain.

    Raises:
        ImageError: a side, or the picture with `pixel_bytes` for each pixel, is too large.
    """
    kind = WRITABLE.get(path.suffix.lower(), "")
    longest, most = _LONGEST.get(kind, math.inf), _MOST_BYTES.get(kind, math.inf)
    if max(width, height) > longest or pixel_bytes * width * height > most:
        limit = f"sides end at {longest} pixels" if kind in _LONGEST else "files end at 4 GiB"
        raise ImageError(
            f"{path}: a {width}x{height} image could not be written as {kind}, whose {limit}; use PNG (--format png)"
        )


class _Encoder(Protocol):
    """Writes the rows of an image; the last rows are in the file after `finish`."""

    def write(self, rows: np.ndarray) -> None: ...

    def finish(self) -> None: ...


class RowWriter:
    """Writes pictures that are the rows of one image from top to bottom, see `written_rows`.

    Attributes:
        notes: messages for the user, as `write_picture` returns them; complete after the first rows.
    """

    def __init__(self, file: IO[bytes], kind: str, width: int, height: int, text: str | None) -> None:
        self.file, self.kind, self.width, self.height, self.text = file, kind, width, height, text
        self.notes: tuple[str, ...] = ()
        self._encoder: _Encoder | None = None
        self._written = 0

    def write(self, rows: Picture) -> None:
        """Writes the next rows; depth, channels and colour profile of the first are those of the image."""
        fitted, depth, notes = _fitted(rows, self.kind)
        array = np.atleast_3d(fitted.to_uint(depth))
        if depth == 16 and array.shape[2] == 2:
            # As `write_picture` does, since many readers know no 16-bit gray and alpha.
            array = array[..., [0, 0, 0, 1]]
        encoder = self._encoder
        if encoder is None:
            self.notes = tuple(notes)
            kind = {"PNG": _PngRows, "TIFF": _TiffRows}.get(self.kind, _CollectedRows)
            shape = (self.height, self.width, array.shape[2])
            encoder = self._encoder = kind(self.file, self.kind, shape, depth, fitted.icc_profile)
            if isinstance(encoder, _PngRows) and self.text is not None:
                self.file.write(_png_text(self.text))
        encoder.write(array)
        self._written += array.shape[0]

    def finish(self) -> None:
        if self._encoder is None or self._written != self.height:
            raise ValueError(f"{self._written} of {self.height} rows were written")
        self._encoder.finish()


@contextmanager
def written_rows(path: str | Path, width: int, height: int, text: str | None = None) -> Iterator[RowWriter]:
    """Writes an image row by row, in the format of the suffix; the file is there when the block ends without an error.

    Args:
        text: see `write_picture`.

    Raises:
        ImageError: a suffix or a size that cannot be written.
    """
    path = Path(path)
    kind = format_of(path)
    check_size(width, height, path)
    with full_disk_explained(path), atomic_path(path) as temporary, temporary.open("r+b") as file:
        writer = RowWriter(file, kind, width, height, text)
        yield writer
        writer.finish()
        file.flush()


class _PngRows:
    """PNG: every row is filtered by Paeth's predictor, which suits photographs, and compressed as one stream."""

    def __init__(self, file: IO[bytes], kind: str, shape: tuple[int, ...], depth: int, profile: bytes | None) -> None:
        self.file, (height, width, channels) = file, shape
        self.pixel_bytes = channels * depth // 8
        self.compressor = zlib.compressobj(6)
        self.above = np.zeros(width * self.pixel_bytes, np.uint8)
        file.write(b"\x89PNG\r\n\x1a\n")
        color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        file.write(_png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)))
        if profile:
            file.write(_png_profile(profile))

    def write(self, rows: np.ndarray) -> None:
        for part in _parts(rows):
            pixels = np.ascontiguousarray(part, dtype=">u2" if part.itemsize == 2 else np.uint8)
            lines = pixels.view(np.uint8).reshape(part.shape[0], -1)
            filtered = np.empty((lines.shape[0], lines.shape[1] + 1), np.uint8)
            filtered[:, 0] = 4  # the number of Paeth's filter
            filtered[:, 1:] = lines - self._predicted(lines)
            self.above = lines[-1].copy()
            self._put(self.compressor.compress(filtered.data))

    def _predicted(self, lines: np.ndarray) -> np.ndarray:
        """Of the bytes to the left, above, and above the left one: the one nearest to left + above − above left."""
        above = np.concatenate([self.above[None], lines[:-1]]).astype(np.int16)
        left, corner = np.zeros_like(above), np.zeros_like(above)
        left[:, self.pixel_bytes :] = lines[:, : -self.pixel_bytes]
        corner[:, self.pixel_bytes :] = above[:, : -self.pixel_bytes]
        to_left, to_above = np.abs(above - corner), np.abs(left - corner)
        to_corner = np.abs(left + above - 2 * corner)
        other = np.where(to_above <= to_corner, above, corner)
        return np.where((to_left <= to_above) & (to_left <= to_corner), left, other).astype(np.uint8)

    def finish(self) -> None:
        self._put(self.compressor.flush())
        self.file.write(_png_chunk(b"IEND", b""))

    def _put(self, data: bytes) -> None:
        if data:
            self.file.write(_png_chunk(b"IDAT", data))


class _TiffRows:
    """TIFF: strips of rows, each with horizontal differences and compressed by itself; the directory comes last."""

    def __init__(self, file: IO[bytes], kind: str, shape: tuple[int, ...], depth: int, profile: bytes | None) -> None:
        self.file, self.shape, self.depth, self.profile = file, shape, depth, profile
        height, width, channels = shape
        self.strip_rows = min(height, max(1, _PART_BYTES // (width * channels * depth // 8)))
        self.waiting = np.empty((0, width, channels), f"<u{depth // 8}")
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        file.write(struct.pack("<2sHI", b"II", 42, 0))  # where the directory is, is filled in at the end

    def write(self, rows: np.ndarray) -> None:
        rows = np.concatenate([self.waiting, rows.astype(self.waiting.dtype)])
        whole = len(rows) - len(rows) % self.strip_rows
        for top in range(0, whole, self.strip_rows):
            self._strip(rows[top : top + self.strip_rows])
        self.waiting = rows[whole:].copy()

    def _strip(self, rows: np.ndarray) -> None:
        differences = rows.copy()
        differences[:, 1:] -= rows[:, :-1]
        data = zlib.compress(differences.tobytes())
        if self.file.tell() + len(data) > _MOST_BYTES["TIFF"]:
            raise ImageError("the image does not fit into a TIFF, whose files end at 4 GiB; use PNG (--format png)")
        self.offsets.append(self.file.tell())
        self.lengths.append(len(data))
        self.file.write(data + b"\0" * (len(data) % 2))  # offsets are even

    def finish(self) -> None:
        if len(self.waiting):
            self._strip(self.waiting)
        height, width, channels = self.shape
        tags: list[tuple[int, str, list[int] | bytes]] = [
            (256, "I", [width]), (257, "I", [height]), (258, "H", [self.depth] * channels),
            (259, "H", [8]),  # compression: deflate
            (262, "H", [2 if channels >= 3 else 1]), (273, "I", self.offsets), (277, "H", [channels]),
            (278, "I", [self.strip_rows]), (279, "I", self.lengths), (284, "H", [1]),
            (317, "H", [2]),  # horizontal differences
        ]  # fmt: skip
        tags += [(338, "H", [2])] if channels in (2, 4) else []  # alpha, not multiplied in
        tags += [(34675, "B", self.profile)] if self.profile else []
        start = self.file.tell()
        entries, values = struct.pack("<H", len(tags)), b""
        outside = start + 2 + 12 * len(tags) + 4  # where values go that are longer than the four bytes of an entry
        for tag, form, value in tags:
            packed = bytes(value) if isinstance(value, bytes) else struct.pack(f"<{len(value)}{form}", *value)
            type_number = {"B": 7, "H": 3, "I": 4}[form]
            count = len(value)
            if len(packed) > 4:
                entries += struct.pack("<HHII", tag, type_number, count, outside + len(values))
                values += packed + b"\0" * (len(packed) % 2)
            else:
                entries += struct.pack("<HHI4s", tag, type_number, count, packed)
        self.file.write(entries + struct.pack("<I", 0) + values)
        self.file.seek(4)
        self.file.write(struct.pack("<I", start))


class _CollectedRows:
    """JPEG, WebP, BMP: all rows are held, at 8 bits, and encoded by Pillow."""

    def __init__(self, file: IO[bytes], kind: str, shape: tuple[int, ...], depth: int, profile: bytes | None) -> None:
        self.file, self.kind, self.profile = file, kind, profile
        self.array = np.empty(shape, np.uint8)
        self.done = 0

    def write(self, rows: np.ndarray) -> None:
        self.array[self.done : self.done + len(rows)] = rows
        self.done += len(rows)

    def finish(self) -> None:
        array = self.array[..., 0] if self.array.shape[2] == 1 else self.array
        self.file.write(_encode(array, self.kind, self.profile))


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in parts of about `_PART_BYTES`."""
    step = max(1, _PART_BYTES // max(rows[:1].nbytes, 1))
    for top in range(0, len(rows), step):
        yield rows[top : top + step]


def format_of(path: Path) -> str:
    """The format that a path's suffix promises.

    Raises:
        ImageError: none that is written.
    """
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(WRITABLE)}")
    return kind


def _fitted(picture: Picture, kind: str) -> tuple[Picture, int, list[str]]:
    """What a format can hold of a picture, its depth there, and notes on what it cannot hold."""
    notes: list[str] = []
    if picture.icc_profile and (kind == "BMP" or (picture.gray and picture.icc_profile[16:20] != b"GRAY")):
        bare = picture.to_srgb()
        notes += bare.notes[len(picture.notes) :]
        picture = bare
    if kind in ("JPEG", "BMP") and picture.alpha is not None:
        alpha = picture.alpha[..., None]
        picture = replace(picture, color=picture.color * alpha + (1 - alpha), alpha=None)
        notes.append(f"{kind} has no alpha: the picture was laid on white")
    depth = picture.depth if kind in DEEP_FORMATS else 8
    if depth < picture.depth:
        notes.append(f"{kind} holds 8 bits per channel: reduced from 16")
    return picture, depth, notes


def _encode(array: np.ndarray, kind: str, profile: bytes | None) -> bytes:
    image = Image.fromarray(array)
    settings = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
        "TIFF": {"compression": "tiff_lzw"},
        "BMP": {},
    }[kind]
    if profile and kind != "BMP":
        settings["icc_profile"] = profile
    buffer = BytesIO()
    try:
        image.save(buffer, kind, **settings)
    except (OSError, ValueError) as error:
        raise ImageError(f"a {image.width}x{image.height} image could not be written as {kind}: {error}") from error
    return buffer.getvalue()


def _encode_deep(array: np.ndarray, kind: str, profile: bytes | None) -> bytes:
    """Encodes 16-bit images of several channels, which only OpenCV writes (gray with alpha becomes RGB with alpha)."""
    import cv2

    channels = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    done, buffer = cv2.imencode(f".{kind.lower()}", np.ascontiguousarray(array[..., channels]))
    if not done:
        raise ImageError(f"a {array.shape[1]}x{array.shape[0]} 16-bit image could not be written as {kind}")
    data = buffer.tobytes()
    if profile and kind == "PNG":
        data = data[:PNG_START] + _png_profile(profile) + data[PNG_START:]
    return data


def _png_profile(profile: bytes) -> bytes:
    return _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))


def _png_text(text: str) -> bytes:
    """A chunk of the kind that every reader of PNG shows, `tEXt`: ASCII, as JSON can always be written."""
    return _png_chunk(b"tEXt", PNG_TEXT.encode() + b"\0" + text.encode("ascii"))


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
