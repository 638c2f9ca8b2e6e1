"""Atomic writing; and the modules that `bench` shares, which import no torch."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tsd.errors import UserError
from tsd.files import (
    alone_in,
    atomic_folder,
    atomic_path,
    common_suffix,
    find_images,
    remove_unfinished,
    sha256_file,
    write_atomic,
    write_safetensors,
    write_text,
)


def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "record.json"
    write_atomic(path, b"old")
    assert sha256_file(path) == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"

    def full(handle: int) -> None:
        (temporary,) = (entry.name for entry in path.parent.iterdir() if entry != path)
        assert re.fullmatch(r"\.record\.[0-9a-f]{16}-[0-9a-f]{8}\.tmp\.json", temporary)
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


KILLED = """
import os, sys
from pathlib import Path
from tsd.files import atomic_folder, atomic_path, write_text

out = Path(sys.argv[1])
write_text(out / "whole.txt", "whole")
with atomic_path(out / "a.png") as one, atomic_folder(out / "b") as two:
    (two / "c").write_text(one.write_text("half") and "half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    """Nothing of a process that still writes, of another machine, or that is called nearly alike."""
    mine = [".hidden.png", ".a.0123456789abcdef-01234567.tmp.png", ".a.tmp"]
    touch(tmp_path, *mine)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writing:
        assert writing.stdout is not None
        assert writing.stdout.readline() == "writing\n"
        remove_unfinished(tmp_path)
        left = {path.name for path in tmp_path.iterdir()} - {*mine, "whole.txt"}
        assert sorted(name[:3] for name in left) == [".a.", ".b."]
        writing.kill()
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "whole.txt"} | left
    write_text(tmp_path / "d.txt", "next")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "whole.txt", "d.txt"])


def test_a_folder_whose_replacement_was_killed_between_the_renames_stays_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tsd.files import atomic_folder; real = os.replace\n"
        "os.replace = lambda a, b: (real(a, b), os.kill(os.getpid(), 9))\n"
        "with atomic_folder(Path(sys.argv[1])) as new: (new / 'new').touch()"
    )
    touch(tmp_path, "kept/old")
    subprocess.run([sys.executable, "-c", code, tmp_path / "kept"])
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["new", "old"]


@pytest.mark.parametrize(
    ("found", "names", "suffix"),
    [
        (["a_x4", "b_x4", "other"], ["a", "b"], "_x4"),
        (["0801x4", "0802x4"], ["0801", "0802"], "x4"),
        (["a", "b", "a_x4"], ["a", "b"], ""),
        (["a_x4", "b_x2"], ["a", "b"], ""),
        (["a_1", "b_1", "a_2", "b_2"], ["a", "b"], ""),
        (["10", "20"], ["1", "2"], ""),
        (["ab"], ["a"], ""),
        (["a_b"], ["a"], "_b"),
        ([], ["a"], ""),
    ],
)
def test_the_suffix_of_all_names(found: list[str], names: list[str], suffix: str) -> None:
    assert common_suffix(found, names) == suffix


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_one_rule_for_what_is_an_image(tmp_path: Path) -> None:
    images = ["a.png", "B.JPG", "c.jfif", "d.heic", "e.avif", "f.gif", "sub/g.TIFF", "h.cr2"]
    touch(tmp_path, *images, "notes.txt", "film.mp4", "film2.MP4", "README")
    touch(tmp_path, "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/a.png", "#recycle/a.png", ".git/a.png")
    touch(tmp_path, "__MACOSX/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/a.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe too.jpg").symlink_to("pipe.png")
    found = find_images(tmp_path, exclude=tmp_path / "round.png")
    links = ["gone.png", "round.png"]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found.images) == sorted([*images, *links])
    others = "1 .jpg that is no file, 2 .mp4, 1 .png that is no file, 1 .txt, 1 linked folder, not followed"
    assert found.passed_over() == f"{others}, 1 without suffix"
    assert all(
        "/" not in path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path, recursive=False).images
    )


def test_a_folder_that_cannot_be_read_does_not_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["a.png"]
    assert found.passed_over() == "1 folder that cannot be read"


def test_one_process_has_a_folder_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsd.files.PATIENCE_SECONDS", 0.3)
    hold = "import sys; from tsd.files import *; from pathlib import Path\n"
    hold += "with alone_in(Path(sys.argv[1]), ''): print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UserError, match=r"^taken$"), alone_in(tmp_path, "taken"):
        pass
    other.kill()
    other.communicate()
    with alone_in(tmp_path, "taken"):
        assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    (path,) = find_images(tmp_path).images
    write_text(tmp_path / "list.json", f'["{path.name}"]')
    assert (tmp_path / "list.json").read_text(encoding="utf-8") == '["caf\\udce9.png"]'
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_temporary_names_of_long_names_fit(tmp_path: Path) -> None:
    for name in ("x" * 255, "照" * 85, "x" * 251 + ".png"):
        write_atomic(tmp_path / name, b"1")
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_bytes(b"2")
        assert (tmp_path / name).read_bytes() == b"2"
        (tmp_path / name).unlink()
        for _ in range(2):
            with atomic_folder(tmp_path / name) as folder:
                (folder / "a").touch()
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name / "a").unlink()
        (tmp_path / name).rmdir()


def test_a_full_disk_is_told_with_folder_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"a\.json needs 5 B \(5 bytes\) in {tmp_path}, where .* is free .*make room"):
        write_atomic(tmp_path / "a.json", b"12345")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value: float) -> None:
    import torch

    with pytest.raises(UserError, match="b would hold values that are NaN or infinite"):
        write_safetensors(tmp_path / "a.safetensors", {"a": torch.ones(2), "b": torch.tensor([1.0, value])})
    assert list(tmp_path.iterdir()) == []
    write_safetensors(tmp_path / "a.safetensors", {"a": torch.ones(2, dtype=torch.int32)})
