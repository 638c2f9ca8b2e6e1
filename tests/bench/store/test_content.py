"""What is recorded as the first hash of a file is that file: no page, no message, no pointer, no part of it."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from bench.cards.card import Weight
from bench.cards.schema import LEDGER
from bench.fetch.weights import record_first_hashes
from bench.options import RunOptions
from bench.store.content import content_fault
from tsd.errors import UserError

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def checkpoint(**settings: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"params": {"weight": torch.arange(12.0)}}, buffer, **settings)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        content.writestr(name, b"content" * 100)
    return buffer.getvalue()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fault(folder: Path, name: str, content: bytes, size: int | None = None) -> str:
    (folder / f"{name}.part").write_bytes(content)
    return content_fault(folder / f"{name}.part", name, size)


@pytest.mark.parametrize(
    "name", ["net.pth", "net.safetensors", "net.bin", "a.png", "sets.zip", "model.mat", "config.json"]
)
@pytest.mark.parametrize(
    "content",
    [
        PAGE, b"\xef\xbb\xbf \n<HTML>gone</HTML>", b"<?xml version='1.0'?><Error>AccessDenied</Error>", b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
    ],
    ids=["page", "page with marks before", "error of a store", "nothing", "pointer"],
)  # fmt: skip
def test_what_servers_answer_in_place_of_a_file(tmp_path: Path, name: str, content: bytes) -> None:
    assert fault(tmp_path, name, content)


def test_a_message_in_json_is_no_checkpoint(tmp_path: Path) -> None:
    assert "message of a server" in fault(tmp_path, "net.bin", b'{"error": "rate limit"}')
    assert fault(tmp_path, "config.json", b'{"error": "rate limit"}') == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("net.pth", checkpoint()),
        ("net.pt", checkpoint(_use_new_zipfile_serialization=False)),
        ("net.safetensors", save({"a": torch.ones(3)})),
        ("sets.zip", zipped("a.txt")),
        ("a.png", picture()),
        ("model.mat", b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200)),
        ("config.json", json.dumps({"a": [1]}).encode()),
        ("words.txt", b"a\nb\n"),
    ],
)
def test_sound_files_and_their_halves(tmp_path: Path, name: str, content: bytes) -> None:
    assert fault(tmp_path, name, content) == ""
    if name not in ("net.pt", "model.mat", "words.txt"):  # these have no end that could be missed
        assert fault(tmp_path, name, content[: len(content) // 2])


def test_other_faults_of_structure(tmp_path: Path) -> None:
    assert "without the data.pkl" in fault(tmp_path, "net.pth", zipped("a.txt"))
    assert "no checkpoint of torch" in fault(tmp_path, "net.pth", b"numbers")
    assert "header is damaged" in fault(tmp_path, "a.safetensors", struct.pack("<Q", 4) + b"numbers")
    damaged = bytearray(checkpoint())
    damaged[damaged.index(b"weight") + 1] ^= 255
    assert "damaged" in fault(tmp_path, "net.pth", bytes(damaged))


def test_a_stated_size_counts(tmp_path: Path) -> None:
    content = checkpoint()
    assert fault(tmp_path, "net.pth", content, len(content)) == ""
    assert "bytes, expected 4,885,111" in fault(tmp_path, "net.pth", content, 4_885_111)
    assert fault(tmp_path, "words.txt", bytes(999_000), 1_000_000) == ""  # stated in round numbers
    assert fault(tmp_path, "words.txt", bytes(900_000), 1_000_000)


def test_a_page_that_a_browser_saved_is_not_recorded(tmp_path: Path) -> None:
    options, weight = RunOptions(weights_root=tmp_path), Weight("net.pth", manual="their drive")
    (tmp_path / "net.pth").write_bytes(PAGE)
    with pytest.raises(UserError, match=r"(?s)not recorded .*net\.pth is a web page"):
        record_first_hashes((weight,), "net", options)
    assert not (tmp_path / LEDGER).exists()
    (tmp_path / "net.pth").write_bytes(checkpoint())
    assert len(record_first_hashes((weight,), "net", options)) == 1
