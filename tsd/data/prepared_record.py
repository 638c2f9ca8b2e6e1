"""The record of a prepared folder, prepared.json: read, checked for completeness, and compared with a training run.

This module imports no torch, so that data of other settings are refused before anything heavy is imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsd.errors import UserError
from tsd.files import sha256_file
from tsd.model.loading import read_config

SCHEMA = 1
RECORD = "prepared.json"
IN_PROGRESS = "in-progress"
_VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def is_prepared(path: str | Path) -> bool:
    """Whether `tsd prepare` wrote this folder, finished or not (opening an unfinished one is an error that says so)."""
    return (Path(path) / RECORD).is_file() or (Path(path) / IN_PROGRESS).is_dir()


def read_record(path: str | Path) -> dict[str, Any]:
    """The content of prepared.json, after checking that every file it lists is there in its full size.

    Raises:
        UserError: not a prepared folder, a half-written, incomplete or empty one, or one of another version.
    """
    folder = Path(path)
    if not (folder / RECORD).is_file():
        if is_prepared(folder):
            raise UserError(
                f"{folder} is half-written: `tsd prepare` was interrupted; the same command continues where it stopped"
            )
        found = "no such folder" if not folder.is_dir() else f"it has no {RECORD}"
        raise UserError(f"{folder} is no prepared data set ({found}); `tsd prepare --help` shows how to make one")
    record = read_config(folder / RECORD)
    if record.get("schema") != SCHEMA:
        raise UserError(
            f"{folder / RECORD} has schema {record.get('schema')!r}, this version reads {SCHEMA}: prepare the images "
            f"again"
        )
    if not record["counts"]["crops"]:
        raise UserError(f"{folder} is empty: not one crop came of its {record['counts']['images']} images")
    damaged = [name for name, size in record["files"].items() if _size(folder / name) != size]
    if damaged:
        raise UserError(
            f"{folder} is incomplete: {len(damaged)} of {len(record['files'])} files are missing or of another size, "
            f"e.g. {damaged[0]}; copy it again, or remove it and prepare the images again"
        )
    return record


def require_settings(
    record: Mapping[str, Any],
    label: str,
    *,
    crop: int | None = None,
    usm: bool | None = None,
    degradation: str | None = None,
    scale: int | None = None,
) -> None:
    """Refuses data that were made with other settings than training asks for; None accepts any.

    Args:
        record: the content of prepared.json.
        label: what to call the data in the message.
        degradation: name of the parameter set.

    Raises:
        UserError: another setting; says with which flag the data are trained on.
    """
    settings = record["settings"]
    if usm is not None and usm != settings["usm"]:
        had, flag = ("sharpened", "--usm") if settings["usm"] else ("not sharpened", "--no-usm")
        raise UserError(f"{label} holds targets that are {had}, training asks for the other: train with {flag}")
    if scale is not None and scale != settings["scale"]:
        raise UserError(f"{label} was degraded by {settings['scale']}, training is for x{scale}: prepare it again")
    if degradation is not None and degradation != settings["degradation"]["name"]:
        raise other_degradation(label)
    if crop is not None and crop != settings["crop"]:
        raise UserError(
            f"{label} was prepared with crops of {settings['crop']} pixels, training asks for {crop}: train with "
            f"{settings['crop']}, or prepare the images again with --crop {crop}"
        )


def other_degradation(label: str) -> UserError:
    """The error for low-quality images of another degradation than training asks for."""
    return UserError(
        f"{label} holds low-quality images of other degradation settings than training asks for (see "
        f"{RECORD} there): train with the same --degradation, or with --degrade-anew"
    )


def require_vae(record: Mapping[str, Any], label: str, folder: Path, model: str | Path) -> None:
    """Refuses latents of another VAE than that of the model in `folder`, which messages call `model`.

    Raises:
        UserError: another VAE, or one without weights.
    """
    stored = record["settings"]["model_sha256"]
    if (found := vae_sha256(folder)) != stored:
        raise UserError(
            f"{label} holds latents of another VAE (sha256 {stored[:12]}…) than {model} ({found[:12]}…): prepare the "
            f"images again with --model {model}"
        )


def vae_sha256(folder: Path) -> str:
    """SHA-256 of the weight file of a model's VAE, the only part of the model that latents depend on.

    Raises:
        UserError: no weight file.
    """
    for name in _VAE_WEIGHTS:
        path = folder / "vae" / name
        if path.is_file():
            return sha256_file(path)
    raise UserError(f"{folder / 'vae'} has no weights; expected {_VAE_WEIGHTS[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
