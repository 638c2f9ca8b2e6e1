"""Files: atomic writing, hashes, readable sizes, which files of a folder are images, the shipped mini models, and
functions in files of the user's own.

Standard library only, so that `bench` may use it anywhere.
"""

import ast
import errno
import functools
import glob
import hashlib
import importlib.util
import io
import os
import platform
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsd.errors import UserError, some

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from torch import Tensor

MiniModel = Literal["mini", "mini-sd2"]
OWN_FUNCTION = "python:FILE.py:FUNCTION"
"""The form in which a function in a file of the user's own is named."""
UNITS = ("B", "kB", "MB", "GB", "TB")
PATIENCE_SECONDS = 8
"""How long a process waits for a folder that another one has."""
NAME_BYTES = 180
"""Longest beginning of a name, in bytes, that a temporary name takes over: file systems end at 255."""

WRITABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
READABLE = WRITABLE | {
    ".jfif": "JPEG", ".jpe": "JPEG", ".gif": "GIF", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF",
}  # fmt: skip
"""Suffixes of image files, in small letters, and the format that each promises; the content decides."""
UNREAD = frozenset({
    ".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".pef", ".pgm", ".ppm",
    ".psd", ".raf", ".rw2", ".srw", ".svg", ".tga",
})  # fmt: skip
"""Suffixes of images that are not read: they are found, so that they fail with a reason and do not vanish."""
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information"}
)
MEGAPIXELS = "TSD_MAX_MEGAPIXELS"
"""The variable with the largest image, in megapixels, that is read. Worker processes inherit it."""
MEGAPIXELS_HELP = (
    "read images of up to this many megapixels (default: 178; guards against files that unpack to fill the memory)"
)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human_size(size_bytes: int | None) -> str:
    """`233.1 MB` for 233_100_000 bytes (powers of ten, as on download pages); empty for None."""
    if size_bytes is None:
        return ""
    value, unit = float(size_bytes), UNITS[0]
    for larger in UNITS[1:]:
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the content of `path` by `data`: readers see the old bytes or the new ones, even after a kill.

    A missing folder is made.
    """
    with full_disk_explained(path, len(data)), atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by UTF-8 text, see `write_atomic`.

    What UTF-8 cannot hold, the bytes of a file name in another encoding, is written as JSON writes it: `\\udce9`.
    """
    write_atomic(path, text.encode(errors="backslashreplace"))


def as_bytes(text: str) -> bytes:
    """Text as bytes to hash: UTF-8, and the bytes as they are for a file name in another encoding."""
    return text.encode(errors="surrogateescape")


def printable(text: str) -> str:
    """Text that any UTF-8 file or terminal can hold: undecodable bytes of a file name become `\\udce9`."""
    return text.encode(errors="backslashreplace").decode()


def is_plain_name(name: str) -> bool:
    """Whether a name that a file states stays in its folder: no separator of any system, no "..", no NUL."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def same_form(name: str) -> str:
    """A name in the form by which names are matched: macOS writes "é" as two characters (NFD), others as one (NFC)."""
    return unicodedata.normalize("NFC", name)


def common_suffix(found: Collection[str], names: Collection[str]) -> str:
    """What follows every one of `names` in `found`, as in `0801_x4` for `0801`; empty if nothing does, or not one text.

    It begins with no digit, so that 10 is never taken for 1, and with a letter only if there are several names.
    """
    if not names or all(name in found for name in names):
        return ""
    first, have = min(names), set(found)
    candidates = {stem.removeprefix(first) for stem in have if stem.startswith(first) and stem != first}
    fitting = [suffix for suffix in candidates if all(name + suffix in have for name in names)]
    if len(fitting) != 1 or fitting[0][0].isdigit() or (fitting[0][0].isalpha() and len(names) == 1):
        return ""
    return fitting[0]


@dataclass(frozen=True)
class FoundImages:
    """What a folder holds.

    Attributes:
        images: image files by their suffix, sorted, those that cannot be read included.
        others: numbers of other files by suffix; hidden and system files do not count.
    """

    images: list[Path]
    others: Counter[str]

    def passed_over(self) -> str:
        """`2 .txt, 1 .mp4 and 1 linked folder`, or nothing: what was found and is no image."""
        return ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.others.items()))


def real_path(path: Path) -> Path:
    """Where a path leads; of links that lead in circles, which `Path.resolve` does not endure, the path to them."""
    return Path(os.path.realpath(path))


def find_images(folder: Path, *, exclude: Path | None = None, recursive: bool = True) -> FoundImages:
    """The one rule for what counts as an image of a folder; every command that reads folders asks it.

    Suffixes decide, in capitals or not. Hidden and system files and folders (`._a.jpg`, `.DS_Store`, `Thumbs.db`,
    `@eaDir`, `__MACOSX`) are left out. Symbolic links to files count, even those that lead nowhere, which reading
    refuses; links to folders are not followed, and pipes, whose reading would wait for ever, are no images.

    Args:
        exclude: a folder below `folder` whose content is left out: that of the results. If it is `folder` itself or
            above it, nothing is left out.
        recursive: search sub-folders too.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    left_out = None if exclude is None else real_path(exclude)
    if left_out is not None and left_out in (real_path(folder), *real_path(folder).parents):
        left_out = None
    for place, folders, names in os.walk(folder, onerror=lambda _: others.update(["folder that cannot be read"])):
        here = Path(place)
        kept = [name for name in folders if not is_hidden(name)] if recursive else []
        others["linked folder, not followed"] += sum((here / name).is_symlink() for name in kept)
        folders[:] = [
            name
            for name in kept
            if not (here / name).is_symlink() and (left_out is None or real_path(here / name) != left_out)
        ]
        for name in names:
            suffix = Path(name).suffix.lower()
            if is_hidden(name):
                continue
            if suffix not in READABLE and suffix not in UNREAD:
                others[suffix or "without suffix"] += 1
            elif _is_special(here / name):
                others[f"{suffix} that is no file"] += 1
            else:
                images.append(here / name)
    return FoundImages(sorted(images), +others)


def _is_special(path: Path) -> bool:
    """Whether this is a pipe, a socket or a device, or leads to one."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by a system for itself."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES or name.lower() in _SYSTEM_FOLDERS


@contextmanager
def megapixels_allowed(most: float | None) -> Iterator[None]:
    """Reads images of up to `most` megapixels inside the block, also in processes started there; None changes nothing.

    Raises:
        UserError: not a positive number.
    """
    if most is not None and not 0 < most < float("inf"):
        raise UserError(f"--max-megapixels is {most}; expected a number above 0")
    before = os.environ.get(MEGAPIXELS)
    if most is not None:
        os.environ[MEGAPIXELS] = str(most)
    try:
        yield
    finally:
        if most is not None:
            os.environ.pop(MEGAPIXELS, None)
            if before is not None:
                os.environ[MEGAPIXELS] = before


def require_writable(folder: Path) -> None:
    """Refuses a folder that cannot be made or written to, before the work that its files would come from.

    Raises:
        UserError: it, or what is there in its place or above it, is a file or read-only.
    """
    place = next(found for found in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(found))
    if not place.is_dir():
        raise UserError(f"{folder} cannot be a folder: {place} is a file; choose another output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} is not writable, and {folder} is to be written there; choose another output")


def require_room(folder: Path, needed: int, advice: str) -> None:
    """Refuses an output for which the disk has too little room.

    Args:
        needed: in bytes.

    Raises:
        UserError: what is needed, what is free, and the `advice`.
    """
    if (free := free_bytes(folder)) < needed:
        raise UserError(f"{folder} needs {human_size(needed)}, and {human_size(free)} are free there; {advice}")


def free_bytes(folder: Path) -> int:
    """The bytes that are free where a folder is, or where it would be made."""
    place = next(found for found in (folder.absolute(), *folder.absolute().parents) if found.is_dir())
    return shutil.disk_usage(place).free


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is half done is removed, and it says what continues."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Raises `Terminated` inside the block when SIGTERM comes; in the main thread only, where signals arrive."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_any_name() -> None:
    """Makes stdout and stderr print every file name: what their encoding cannot show is escaped, never an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def full_disk_explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Tells of a full disk which folder is full and how much room is needed.

    Raises:
        UserError: in place of the error of a full disk, an exceeded quota or a file that is too large.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        free = human_size(shutil.disk_usage(path.parent).free) if path.parent.is_dir() else "nothing"
        room = f" needs {human_size(needed)} ({needed:,} bytes)" if needed is not None else " does not fit"
        raise UserError(
            f"{path.name}{room} in {path.parent}, where {free} is free ({error}): make room, or choose another folder"
        ) from error


def _is_full_disk(error: Exception) -> bool:
    """Whether a write failed for want of room; safetensors and torch say so in words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(words in str(error) for words in ("StorageFull", "FileTooLarge", "PytorchStreamWriter failed writing"))


def _beginning(name: str) -> str:
    """The beginning of a name that leaves a temporary name room for more; a whole name if it is short enough."""
    return os.fsencode(name)[:NAME_BYTES].decode(sys.getfilesystemencoding(), "ignore")


def write_safetensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically.

    Raises:
        UserError: a value is NaN or infinite, or the disk is full.
    """
    from safetensors.torch import save_file

    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise UserError(f"{path} is not written: {some(broken)} would hold values that are NaN or infinite")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with full_disk_explained(path, size), atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when the block ends without an error.

    A missing folder is made. The temporary file keeps the suffix, since libraries choose formats by it. What a killed
    process leaves is removed by the next one that writes into the folder, see `remove_unfinished`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path.parent, path.stem, path.suffix) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # other users shall be able to read it
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`, renamed to it when the block ends without an error.

    An existing folder is replaced, and removed only when the new one is in its place. A kill between the two renames
    leaves both, complete, under hidden names beside `path`; after any other the next process that writes there removes
    the unfinished folder, see `remove_unfinished`.
    """
    path = real_path(path)  # replaces the target of a symbolic link, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    old: Path | None = None
    try:
        with _temporary(path.parent, path.name, None) as temporary:
            yield temporary
            for entry in (temporary, *temporary.rglob("*")):  # libraries set different permissions
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{_beginning(path.name)}.", suffix=_REPLACED))
                os.replace(path, old)
            os.replace(temporary, path)
    finally:
        if old is not None and path.exists():
            shutil.rmtree(old, ignore_errors=True)


_UNFINISHED = re.compile(r"(?P<beginning>\..*)\.(?P<host>[0-9a-f]{8})(?P<boot>[0-9a-f]{8})-[0-9a-f]{8}\.tmp(\.[^.]*)?")
"""Names of temporary files and folders: whose they are begins them, then the machine, a random part, and the suffix."""
_REPLACED = ".replaced"
_NOBODY = 16 * "0"
"""In place of the machine where a file system has no locks."""
_tidied: set[str] = set()


@contextmanager
def _temporary(place: Path, stem: str, suffix: str | None) -> Iterator[Path]:
    """A new hidden file, or a folder for the suffix None, that is locked inside the block and removed at its end."""
    if (known := os.path.abspath(place)) not in _tidied:
        _tidied.add(known)
        with suppress(OSError):
            remove_unfinished(place)
    machine, handle = "".join(_machine()) if fcntl is not None else _NOBODY, None
    while True:
        temporary = place / f".{_beginning(stem)}.{machine}-{os.urandom(4).hex()}.tmp{suffix or ''}"
        if suffix is None:
            temporary.mkdir(mode=0o700)
        else:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        if machine == _NOBODY or (handle := _locked(temporary)) is not None:
            break
        with suppress(FileNotFoundError):  # another process may just tidy up
            temporary.unlink() if suffix is not None else temporary.rmdir()
        machine = _NOBODY
    try:
        yield temporary
    finally:
        if suffix is None:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def remove_unfinished(folder: Path, *, below: bool = False) -> None:
    """Removes the temporary files and folders that killed processes left in a folder, and `below` it.

    What is being written is locked, so that nobody is disturbed, in whatever container. What another machine left on a
    shared disk stays, since not every file system shows its locks.
    """
    for entry in list(folder.rglob(".*") if below else folder.iterdir()):
        name = _UNFINISHED.fullmatch(entry.name)
        if name is None or not any(map(str.__eq__, name.group("host", "boot"), _machine())):
            continue
        if any(entry.parent.glob(f"{glob.escape(name['beginning'])}.*{_REPLACED}")):
            continue  # killed between two renames: this is complete
        handle = _locked(entry)
        if handle is None:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def alone_in(folder: Path, busy: str) -> Iterator[None]:
    """Keeps a second process out of a folder while the block runs; the kernel unlocks it however this one ends.

    On systems and file systems without locks it does nothing.

    Raises:
        UserError: `busy`, if another process has the folder and does not leave it within some seconds: the workers of
            a killed one live that long.
    """
    if fcntl is None:
        yield
        return
    handle, patience = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE_SECONDS
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise UserError(busy) from None
                time.sleep(0.1)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


def _locked(path: Path) -> int | None:
    """A handle that holds the lock of a file or folder; None if another has it, it is gone, or there are no locks."""
    if fcntl is None:
        return None
    try:
        handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


@functools.cache
def _machine() -> tuple[str, str]:
    """This machine by its name, and, where the system tells it, by its last start, which all its containers share."""
    name = boot = platform.node()
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    host, start = (hashlib.sha256(part.encode()).hexdigest()[:8] for part in (name, boot))
    return host, start


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def mini_model_dir(name: MiniModel = "mini") -> Path:
    """The folder of a mini model shipped in the package, in diffusers layout: `mini` (SD3) or `mini-sd2` (SD2)."""
    return Path(__file__).parent / "assets" / name


def is_mini_model(model: str | Path) -> bool:
    """Whether this is the folder of a mini model shipped in the package."""
    return Path(model).expanduser().resolve().parent == mini_model_dir().parent.resolve()


def function_named(text: str) -> tuple[Path, str] | None:
    """The file and the function that a text of this form names; None for any other text."""
    kind, _, argument = text.partition(":")
    file, _, function = argument.rpartition(":")
    if kind != "python" or not file or not function.isidentifier():
        return None
    return Path(file).expanduser(), function


@contextmanager
def no_exit(what: object) -> Iterator[None]:
    """Inside the block `sys.exit` is an error: code of the user's own must not end a run without a word.

    Raises:
        RuntimeError: names `what` has called it.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"{what} called sys.exit({'' if error.code is None else repr(error.code)})") from error


def require_function(path: Path, name: str, *arguments: str) -> None:
    """Refuses, without running it, a file that cannot have a function of this name and with these arguments.

    What only running it would show, such as names made by `exec`, passes.

    Raises:
        UserError: no Python, the name is nowhere in it, or its `def` does not take as many arguments.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected {OWN_FUNCTION}") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no Python: {error}; expected {OWN_FUNCTION}") from error
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in nodes):
        return
    binding = [node for node in nodes if name in (getattr(node, key, None) for key in ("id", "name", "asname"))]
    if not binding:
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        raise UserError(f"{path} has no function {name!r}; it defines {', '.join(sorted(found)) or 'none'}")
    first = next((node for node in tree.body if node is binding[0]), None)
    if isinstance(first, ast.FunctionDef) and not first.decorator_list and not _stored_again(binding[1:]):
        given = first.args
        most = len(given.posonlyargs) + len(given.args)
        keywords = [
            key.arg for key, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None
        ]
        fits = most - len(given.defaults) <= len(arguments) and (most >= len(arguments) or given.vararg is not None)
        if not fits or keywords:
            raise UserError(
                f"{path}, line {first.lineno}: {name}({ast.unparse(given)}); expected {name}({', '.join(arguments)})"
            )


def _stored_again(nodes: list[ast.AST]) -> bool:
    """Whether one of the nodes that bear a name gives it another meaning, and does not only use it."""
    return any(not isinstance(node, ast.Name) or isinstance(node.ctx, ast.Store) for node in nodes)


def load_function(path: Path, name: str) -> tuple[Callable[..., Any], str]:
    """Runs the user's own file; returns the function `name` in it, and the file's SHA-256.

    It is loaded alone, under a private module name; modules beside it are found only where PYTHONPATH or an installed
    package provides them.

    Raises:
        UserError: no such file, the file does not run, or it has no function of that name.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read ({error}); expected {OWN_FUNCTION}") from error
    sha256 = hashlib.sha256(source).hexdigest()
    module_name = f"own_function_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; expected {OWN_FUNCTION}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look their module up by name.
    sys.modules[module_name] = module
    try:
        with no_exit(path.name):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(f"{path} failed while it was loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{path} has no function {name!r}; it defines {', '.join(sorted(names)) or 'none'}")
    return function, sha256
