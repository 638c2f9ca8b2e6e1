"""Files: atomic writing, hashes, readable sizes, the shipped mini models, and functions in files of the user's own.

Standard library only, so that `bench` may use it anywhere.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MiniModel = Literal["mini", "mini-sd2"]
OWN_FUNCTION = "python:FILE.py:FUNCTION"
"""The form in which a function in a file of the user's own is named."""
UNITS = ("B", "kB", "MB", "GB", "TB")


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

    A missing folder is made. A killed process may leave a temporary file named `.NAME.PID.tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by UTF-8 text, see `write_atomic`."""
    write_atomic(path, text.encode())


def write_safetensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when the block ends without an error.

    A missing folder is made. The temporary file keeps the suffix, since libraries choose formats by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would keep other users from reading it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`, renamed to it when the block ends without an error.

    An existing folder is replaced, and removed only when the new one is in its place. A kill between the two renames
    leaves both, complete, under hidden names beside `path`; an earlier kill leaves the old one and an unfinished hidden
    folder.
    """
    path = path.resolve()  # replaces the target of a symbolic link, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old: Path | None = None
    try:
        yield temporary
        for entry in (temporary, *temporary.rglob("*")):  # libraries set different permissions
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old is not None and path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def mini_model_dir(name: MiniModel = "mini") -> Path:
    """The folder of a mini model shipped in the package, in diffusers layout: `mini` (SD3) or `mini-sd2` (SD2)."""
    return Path(__file__).parent / "assets" / name


def function_named(text: str) -> tuple[Path, str] | None:
    """The file and the function that a text of this form names; None for any other text."""
    kind, _, argument = text.partition(":")
    file, _, function = argument.rpartition(":")
    if kind != "python" or not file or not function.isidentifier():
        return None
    return Path(file).expanduser(), function


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
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(f"{path} failed while it was loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{path} has no function {name!r}; it defines {', '.join(sorted(names)) or 'none'}")
    return function, sha256
