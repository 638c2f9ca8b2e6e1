"""Atomic writing; and the modules that `bench` shares, which import no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tsd.files import sha256_file, write_atomic, write_text


def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "record.json"
    write_atomic(path, b"old")
    assert sha256_file(path) == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"

    def full(handle: int) -> None:
        assert [entry.name for entry in path.parent.iterdir() if entry != path] == [f".record.json.{os.getpid()}.tmp"]
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_written_as_utf8_with_ordinary_rights(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ẑ_t\n")
    assert (tmp_path / "a.txt").read_bytes() == "ẑ_t\n".encode()
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_the_ground_and_the_settings_of_a_run_import_no_torch() -> None:
    modules = "tsd.errors, tsd.files, tsd.config, tsd.presets, tsd.train.settings"
    code = f"import {modules}, sys; print([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
