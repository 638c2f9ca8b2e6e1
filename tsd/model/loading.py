"""Models on disk or on the hub: their family, their folder, and their files.

This module reads only small files and imports no torch, so errors show before anything heavy loads. Weights must be
safetensors files.
"""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsd.errors import UserError
from tsd.model.family import Family
from tsd.model.sd2 import SD2
from tsd.model.sd3 import SD3

FAMILIES: dict[str, Family] = {"sd3": SD3(), "sd2": SD2()}
SD3_MEDIUM = FAMILIES["sd3"].example
# Weights once, in safetensors: repositories also hold fp16, non-EMA and pickled copies of the same weights.
_WANTED = ("*.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED_TEXT = ("*.json", "model.safetensors", "model-*.safetensors", "merges.txt", "spiece.model")


def parts_of(family: Family) -> tuple[str, str, str]:
    """The sub-folders a model of this family is made of."""
    return family.denoiser_folder, "vae", "scheduler"


def detect_family(folder: Path) -> Family:
    """The family of a model folder, by its denoiser's folder and class; reads one small file.

    Raises:
        UserError: neither family's denoiser is there, or another class stands in its place.
    """
    for family in FAMILIES.values():
        config = folder / family.denoiser_folder / "config.json"
        if config.is_file():
            found = read_config(config).get("_class_name")
            if found != family.denoiser_class:
                raise UserError(
                    f"{config} describes a {found}; this project knows {family.denoiser_class} there "
                    f"({family.name.upper()}, e.g. {family.example})"
                )
            return family
    known = "; ".join(
        f"{family.denoiser_folder}/config.json of a {family.denoiser_class} ({family.name.upper()}: {family.example})"
        for family in FAMILIES.values()
    )
    found = sorted(entry.name for entry in folder.iterdir())
    raise UserError(
        f"{folder} is a model of neither family (found: {', '.join(found[:12]) or 'nothing'}). Expected the diffusers "
        f"layout, with {known}."
    )


def read_configs(folder: Path) -> tuple[Family, dict[str, dict[str, Any]]]:
    """The family of a model folder and the configurations of its `denoiser`, `vae` and `scheduler`.

    Raises:
        UserError: one of them is missing or damaged, or the VAE writes other latents than the denoiser reads.
    """
    family = detect_family(folder)
    files = {
        "denoiser": folder / family.denoiser_folder / "config.json",
        "vae": folder / "vae" / "config.json",
        "scheduler": folder / "scheduler" / "scheduler_config.json",
    }
    configs = {name: read_config(path) for name, path in files.items()}
    written, read = configs["vae"].get("latent_channels"), configs["denoiser"].get("in_channels")
    if written != read:
        raise UserError(f"{folder}: the VAE writes {written} latent channels but the denoiser reads {read}")
    return family, configs


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of diffusers' layout.

    Raises:
        UserError: no such file, or not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; the model folder is incomplete") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}; expected an object")
    return config


def is_hub_id(source: str | Path) -> bool:
    """Whether a model is named by its hub id, whose files may have to be fetched, and not by a folder."""
    return not Path(source).expanduser().is_dir() and _HUB_ID.fullmatch(str(source)) is not None


def resolve_model(source: str | Path, extra_parts: tuple[str, ...] = ()) -> Path:
    """The local folder of a model: `source` itself, or the (cached or fetched) snapshot of a hub id.

    Args:
        extra_parts: sub-folders to fetch from the hub beside the model's own, such as `text_encoder`; a local folder
            is not searched for them.

    Raises:
        UserError: the source is neither; the message says what was found and, for a hub id without network, what to
            fetch and where to put it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        family = detect_family(folder)
        missing = [part for part in parts_of(family) if not (folder / part).is_dir()]
        if missing:
            found = sorted(entry.name for entry in folder.iterdir())
            raise UserError(
                f"{folder} is not a whole model of the {family.name.upper()} family: missing "
                f"{', '.join(p + '/' for p in missing)} (found: {', '.join(found[:12])}). Expected the diffusers "
                f"layout of {family.example}."
            )
        return folder
    text = str(source)
    if not _HUB_ID.fullmatch(text):
        raise UserError(f"no model folder at {text!r}, and it is no hub id of the form owner/name")
    parts = list(dict.fromkeys(part for family in FAMILIES.values() for part in parts_of(family)))
    patterns = [f"{part}/{wanted}" for part in parts for wanted in _WANTED] + [
        f"{part}/*" for part in ["prompts", *extra_parts]
    ]

    def complete(cached: Path) -> bool:
        family = detect_family(cached)
        there = all((cached / part).is_dir() for part in (*parts_of(family), *extra_parts))
        return there and all(_has_weights(cached / part) for part in (family.denoiser_folder, "vae"))

    return _snapshot(text, patterns, [*parts, *extra_parts], complete)


def _has_weights(folder: Path) -> bool:
    """Whether a network's weights are there: the one file, or every shard that the index names."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        return any(folder.glob("*.safetensors"))
    return all((folder / name).is_file() for name in set(read_config(index)["weight_map"].values()))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads: one file or shards, without fp16 variants."""
    files = [*folder.glob("diffusion_pytorch_model.safetensors"), *folder.glob("diffusion_pytorch_model-*.safetensors")]
    if not files:
        raise UserError(f"{folder} has no weights; expected diffusion_pytorch_model.safetensors, whole or in shards")
    return sorted(files)


def resolve_text_model(source: str | Path, *, t5: bool = True) -> Path:
    """The local folder of a model's text side: text encoders, tokenizers and the denoiser's configuration.

    Only these are fetched for a hub id, not the weights of VAE and denoiser; without `t5` neither SD3's third encoder
    (9.5 GB) nor its tokenizer. `tsd.prompts.text_encoders.text_side` checks what a folder holds.

    Raises:
        UserError: no such folder; a hub id that is not on this machine and cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    text = str(source)
    if not _HUB_ID.fullmatch(text):
        raise UserError(f"no model folder at {text!r}, and it is no hub id of the form owner/name")
    parts = [
        f"{part}{suffix}" for suffix in ("", "_2", "_3")[: 3 if t5 else 2] for part in ("text_encoder", "tokenizer")
    ]
    patterns = [f"{part}/{wanted}" for part in parts for wanted in _WANTED_TEXT]
    patterns += [f"{family.denoiser_folder}/config.json" for family in FAMILIES.values()]

    def complete(cached: Path) -> bool:
        needed = parts if detect_family(cached).name == "sd3" else parts[:2]
        return all((cached / part).is_dir() for part in needed)

    return _snapshot(text, patterns, parts, complete)


def _snapshot(hub_id: str, patterns: list[str], parts: list[str], complete: Callable[[Path], bool]) -> Path:
    """The snapshot with the files of `patterns`: the cached one if it is `complete`, else a fetched one."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    included = " ".join(repr(f"{part}/*") for part in parts)
    advice = (
        f"Fetch it on a machine with network (`hf download {hub_id} --include {included} --local-dir DIR`) and pass "
        f"the folder DIR as the model."
    )
    try:
        cached = Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
        if complete(cached):  # an earlier run may have needed, and fetched, other parts of the model
            return cached
    except (LocalEntryNotFoundError, UserError):
        pass
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{hub_id} is not in the local hub cache, or not whole, and HF_HUB_OFFLINE is set. {advice}")
    try:
        probe_hub(constants.ENDPOINT)
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UserError(f"{hub_id} is gated: accept its licence on its hub page, then `hf auth login`.") from error
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise UserError(
                f"{hub_id} is not whole in {constants.HF_HUB_CACHE}, and that folder cannot be written ({error}): "
                f"set HF_HUB_CACHE to a folder of your own. {advice}"
            ) from error
        raise UserError(f"{hub_id} is not on this machine and the hub could not be reached. {advice}") from error


def probe_hub(endpoint: str) -> None:
    """Fails within seconds where there is no network; the hub client itself retries for most of a minute.

    Where a proxy stands between (HTTPS_PROXY), it is the proxy that must answer.
    """
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(endpoint)
    proxies = {} if proxy_bypass(parts.hostname or endpoint) else getproxies()
    if proxy := proxies.get(parts.scheme) or proxies.get("all"):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (parts.hostname or endpoint, parts.port or (443 if parts.scheme == "https" else 80))
    socket.create_connection(address, timeout=5).close()
