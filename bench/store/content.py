"""Whether a file can be what its name says, for files whose hash nobody publishes: no web page, no pointer, no half.

A server, a proxy or a login page may answer with status 200 and something else. What is recorded as the first hash of a
file would then be trusted from then on. Nothing is executed here: pickles are read as opcodes, never loaded.
"""

import json
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path

from tsd.files import READABLE, human_size

HEAD_BYTES = 1024
EXACT = 1000
"""A stated size that is a multiple of this was rounded, and holds within one per cent."""
BOMB = 200
"""An archive that unpacks to more than this many times its size was made to fill a disk: weights and photographs do not
shrink."""
PICKLE_BYTES = 2**28
"""A checkpoint's pickle holds names and shapes; the numbers lie beside it."""
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError)
"""What reading a damaged, encrypted or unusual zip file raises."""
_TORCH = (".pth", ".pt", ".ckpt", ".pkl", ".th")
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAGIC = {
    ".mat": (b"MATLAB", b"\x89HDF"),
    ".h5": (b"\x89HDF",),
    ".npy": (b"\x93NUMPY",),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".7z": (b"7z\xbc\xaf\x27\x1c",),
    ".rar": (b"Rar!",),
}


def is_web_page(content_type: str | None) -> bool:
    """Whether a server calls its answer a web page."""
    return (content_type or "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def content_fault(path: Path, name: str, size_bytes: int | None = None) -> str:
    """What speaks against a file being what its name says; empty if nothing does.

    Args:
        path: the file, under whatever name.
        name: the name it is to have; its suffix tells the structure.
        size_bytes: the size that is stated for it, if any.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<script", b"<body", b"<?xml")):
        return f"a web page ({_beginning(head)})"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file"
    suffix = Path(name).suffix.lower()
    if suffix != ".json" and text.startswith((b"{", b"[")) and _is_json(path, size):
        return f"a message of a server ({_beginning(head)})"
    if size_bytes is not None:
        allowed = 0 if size_bytes % EXACT else size_bytes // 100
        if abs(size - size_bytes) > allowed:
            return f"{size:,} bytes, expected {size_bytes:,}"
    return _structure_fault(path, suffix, head, size)


def _structure_fault(path: Path, suffix: str, head: bytes, size: int) -> str:
    if suffix in _TORCH:
        return _torch_fault(path, head)
    if suffix == ".safetensors":
        return _safetensors_fault(path, head, size)
    if suffix in (".zip", ".npz"):
        return _zip_fault(path)
    if suffix == ".json":
        return "" if _is_json(path, size) else "no JSON"
    if suffix in _MAGIC and not head.startswith(_MAGIC[suffix]):
        return f"no {suffix} file (it begins with {_beginning(head)})"
    if suffix in READABLE:
        from tsd.images import ImageError, read_picture

        try:
            read_picture(path)
        except ImageError as error:
            return str(error).removeprefix(f"{path}: ")
    return ""


def _torch_fault(path: Path, head: bytes) -> str:
    """torch's zip files whole, its older files and other pickles by their beginning."""
    if head.startswith(b"PK"):
        if fault := _zip_fault(path):
            return fault
        with zipfile.ZipFile(path) as content:
            pickles = [name for name in content.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if not pickles:
                return "a zip file without the data.pkl of a checkpoint"
            if content.getinfo(pickles[0]).file_size > PICKLE_BYTES:
                return f"a checkpoint whose pickle has {human_size(content.getinfo(pickles[0]).file_size)}"
            try:
                for _ in pickletools.genops(content.read(pickles[0])):
                    pass
            except (ValueError, IndexError) as error:
                return f"a checkpoint whose pickle is damaged ({error})"
        return ""
    if head.startswith(_LEGACY_TORCH) or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        return ""
    return f"no checkpoint of torch (it begins with {_beginning(head)})"


def _safetensors_fault(path: Path, head: bytes, size: int) -> str:
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else size
    if length + 8 > size:
        return f"no safetensors file, or a cut one (it begins with {_beginning(head)})"
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError):
            return "no safetensors file: its header is damaged"
    if end + 8 + length != size:
        return f"{size:,} bytes, and its header tells of {end + 8 + length:,}"
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # types, shapes and gaps, as whoever loads it will see them
            return ""
    except SafetensorError as error:
        return f"no safetensors file: {error}"


def _zip_fault(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as content:
            if fault := bomb_fault(content, path.stat().st_size):
                return fault
            broken = content.testzip()
    except ZIP_ERRORS as error:
        return f"a damaged zip file ({error})"
    return "" if broken is None else f"a damaged zip file ({broken})"


def bomb_fault(archive: zipfile.ZipFile, size: int) -> str:
    """What speaks against unpacking an archive of `size` bytes, by what its directory says; empty if nothing does.

    `zipfile` reads no more of a member than the directory says.
    """
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > BOMB * size:
        return f"an archive of {human_size(size)} that unpacks to {human_size(unpacked)}"
    for member in members:
        if member.file_size > max(BOMB * member.compress_size, 2**20):
            return f"an archive whose {member.filename} unpacks to {human_size(member.file_size)}"
    return ""


def _is_json(path: Path, size: int) -> bool:
    if size > 2**26:
        return False
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _beginning(head: bytes) -> str:
    return repr(head[:24].decode("latin-1"))
