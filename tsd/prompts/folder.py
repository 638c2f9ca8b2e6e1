"""Prompt folders: `default/` and `null/` with their tensors, and `prompts.json` that says how they were made.

The layout is the release's, which `tsd.model.prompt.load_prompts` reads: `prompt_embeds` (1, L, D) and, for SD3,
`pool_embeds` (1, P), as `.safetensors` or `.pt`. The release has only the tensors; here `prompts.json` also gives each
one's text, the sha256 of its values, and the hashes of the encoders that computed it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tsd.errors import UserError
from tsd.files import atomic_path, full_disk_explained, sha256_file, write_safetensors, write_text
from tsd.model.prompt import PromptEmbeds
from tsd.prompts.encode import content_sha256
from tsd.prompts.text_encoders import TextSide

RECORD = "prompts.json"
FORMATS = ("safetensors", "pt")
NAMES = ("prompt_embeds", "pool_embeds")
# Relative Euclidean distance. Encoders with random weights, bf16 against fp32: 0.010 at CLIP-L's size, 0.023 for
# a T5 of 24 layers (fp16: less than half); another text gives 0.87 and more.
CLOSE = 0.05


def encoder_hashes(side: TextSide, progress: Callable[[Iterable[Path]], Iterable[Path]]) -> dict[str, str]:
    """The sha256 of every file the text side is loaded from, by its path in the model folder."""
    hashes: dict[str, str] = {}
    for path in progress([file for encoder in side.encoders for file in encoder.files()]):
        hashes[f"{path.parent.name}/{path.name}"] = sha256_file(path)
    return dict(sorted(hashes.items()))


def read_record(folder: Path) -> dict[str, Any] | None:
    """The content of the folder's `prompts.json`; None if there is none.

    Raises:
        UserError: the file is not one that this module writes.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        valid = isinstance(record["settings"], dict) and all(
            isinstance(entry["text"], str) and all({"file", "sha256"} <= set(of) for of in entry["tensors"].values())
            for entry in record["prompts"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UserError(f"{path} is not a record of `tsd prompts`; move it away, or give another folder")
    return record


def tensor_files(folder: Path) -> list[Path]:
    """The tensor files of one prompt that exist, in either format."""
    paths = [folder / f"{name}.{suffix}" for name in NAMES for suffix in FORMATS]
    return [path for path in paths if path.is_file()]


def is_intact(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether the tensors in one prompt's folder are exactly those that its entry in the record describes."""
    expected = {tensor["file"]: tensor["sha256"] for tensor in entry["tensors"].values()}
    if {path.name for path in tensor_files(folder)} != set(expected):
        return False
    try:
        return all(content_sha256(_read(folder / name)) == digest for name, digest in expected.items())
    except Exception:  # a damaged archive raises anything; it is not intact
        return False


def write_prompt(folder: Path, prompt: PromptEmbeds, suffix: str) -> dict[str, dict[str, Any]]:
    """Writes one prompt's tensors, each file atomically, removes the files they replace, and returns their entries."""
    entries: dict[str, dict[str, Any]] = {}
    written: list[Path] = []
    for name, tensor in zip(NAMES, (prompt.embeds, prompt.pooled), strict=True):
        if tensor is None:
            continue
        path, tensor = folder / f"{name}.{suffix}", tensor.contiguous().clone()
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{path} is not written: it would hold values that are NaN or infinite")
        if suffix == "pt":
            with full_disk_explained(path), atomic_path(path) as temporary:
                torch.save(tensor, temporary)
        else:
            write_safetensors(path, {name: tensor})
        written.append(path)
        entries[name] = {
            "file": path.name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": content_sha256(tensor),
        }
    for path in tensor_files(folder):
        if path not in written:  # the other format, or the other family's pooled vector
            path.unlink()
    return entries


def write_record(folder: Path, settings: dict[str, Any], origin: dict[str, Any], prompts: dict[str, Any]) -> None:
    """Writes `prompts.json`: `settings` decide the values, `origin` (device, versions) only documents them."""
    record = {"schema": 1, "settings": settings, "origin": origin, "prompts": prompts}
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _read(path: Path) -> Tensor:
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    (tensor,) = load_file(path).values()
    return tensor


@dataclass(frozen=True)
class Difference:
    """The difference of two tensors of the same meaning.

    `verdict` is `equal`, `close` (relative distance at most `CLOSE`) or `different`.
    """

    name: str
    verdict: str
    detail: str


def compare(found: PromptEmbeds, other: PromptEmbeds, clip_tokens: int | None) -> list[Difference]:
    """Compares the tensors of two prompts.

    Args:
        clip_tokens: if given, this many first rows (SD3: the CLIPs') and the other rows (T5's) are compared separately,
            so that a prompt made without T5 is recognised.
    """
    rows = [("prompt_embeds", found.embeds, other.embeds)]
    if clip_tokens is not None and found.embeds.shape == other.embeds.shape:
        rows = [
            ("prompt_embeds, CLIP rows", found.embeds[:, :clip_tokens], other.embeds[:, :clip_tokens]),
            ("prompt_embeds, T5 rows", found.embeds[:, clip_tokens:], other.embeds[:, clip_tokens:]),
        ]
    if found.pooled is not None and other.pooled is not None:
        rows.append(("pool_embeds", found.pooled, other.pooled))
    return [_difference(*row) for row in rows]


def _difference(name: str, found: Tensor, other: Tensor) -> Difference:
    if found.shape != other.shape:
        return Difference(name, "different", f"{tuple(found.shape)} here, {tuple(other.shape)} there")
    a, b = found.double(), other.double()
    largest, length = (a - b).abs().max().item(), b.norm().item()
    if largest == 0:
        return Difference(name, "equal", "every value")
    if length == 0:
        return Difference(name, "different", f"zeros there (T5 left out?), up to {a.abs().max().item():.3g} here")
    relative = (a - b).norm().item() / length
    verdict = "close" if relative <= CLOSE else "different"
    return Difference(name, verdict, f"largest absolute difference {largest:.3g}, relative {relative:.2g}")
