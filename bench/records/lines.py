"""Files of records: JSON lines that a kill cannot damage, JSON objects that are replaced whole, folders set aside.

A line is appended with one write and flushed to disk, so a kill at any time leaves complete lines and at most one torn
line without a newline at the end. Reading ignores that torn line, and the next append removes it. Any other line that
is no record is an error with file and line number: a record that cannot be read is never skipped.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.records.schema import SCHEMA, RecordError, check_schema
from tsd.files import write_atomic


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Appends one record and flushes it to disk; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as handle:
        size = handle.seek(0, os.SEEK_END)
        if size:
            handle.seek(size - 1)
            if handle.read(1) != b"\n":  # torn by a kill in the middle of the last append
                handle.seek(0)
                handle.truncate(_complete_length(handle.read()))
        handle.write(f"{_line(content)}\n".encode())
        os.fsync(handle.fileno())


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every record of a file without its schema number, and its place for messages; a torn end is left out.

    Raises:
        RecordError: a line is no JSON object, or of another schema.
    """
    data = path.read_bytes()
    for number, line in enumerate(data[: _complete_length(data)].splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(
                f"{where}: not a record ({error}). The file was damaged; delete that line to have its work done again"
            ) from None
        yield check_schema(raw, where), where


def rewrite_lines(path: Path, contents: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of records, unless it has these already."""
    _replace(path, "".join(f"{_line(content)}\n" for content in contents).encode())


def read_object(path: Path) -> dict[str, Any]:
    """A record that is a file of its own, without its schema number.

    Raises:
        RecordError: no JSON object, or of another schema.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path}: not JSON ({error}). The file was damaged; restore it from git, or delete it"
        ) from None
    return check_schema(raw, path)


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a record that is a file of its own, unless it is the same already."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    _replace(path, text.encode())


def set_aside(folder: Path, place: Path, name: str) -> Path:
    """Moves a folder of records into `place`, as `name` with a number of its own, and returns where it is now."""
    for number in range(1, 10_000):
        target = place / f"{name}.{number}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, target)
            return target
    raise RecordError(f"{place} holds 9999 sets of old records of {name}: tidy it up")


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, **content}, allow_nan=False, ensure_ascii=False)


def _replace(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


def _complete_length(data: bytes) -> int:
    """Length of `data` up to and including its last newline."""
    return data.rfind(b"\n") + 1
