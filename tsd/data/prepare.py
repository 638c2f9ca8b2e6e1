"""Preparing training data once: crops, degraded crops, captions, their embeddings and the targets' latents.

There are two passes, each in shards that are written atomically:

    images      worker processes read, crop and degrade; this process encodes with the VAE, captions and writes
    captions    every distinct caption is embedded once; the text encoders are loaded after the VAE is freed

A killed run continues with the first missing shard and ends with the same data. The content of a shard depends on the
settings and the images alone, not on the number of workers or on where a run was interrupted. (Latents and embeddings
may differ in the last bit between machines, as everything computed in floating point does.)
"""

import csv
import hashlib
import io
import itertools
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsd.data.hf import prompt_features, remove_leftovers, shard_name, write_dataset_info, write_shard
from tsd.data.image_pass import ImagePass
from tsd.data.prepare_config import PrepareConfig, is_complete, settings_of
from tsd.data.prepared import PROMPTS
from tsd.data.prepared_record import IN_PROGRESS, RECORD, SCHEMA, read_record
from tsd.data.sources import Source
from tsd.errors import UserError
from tsd.files import alone_in, write_text
from tsd.model.loading import resolve_model
from tsd.model.prompt import PromptEmbeds
from tsd.precision import torch_dtype

SKIPPED = "skipped.csv"
LIBRARIES = ("diffusers", "transformers", "datasets", "Pillow", "numpy")


def prepare(
    source: Source,
    out: str | Path,
    model: str | Path,
    config: PrepareConfig,
    *,
    workers: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Writes a prepared folder (`tsd.data.prepared`), or continues one; returns its record.

    Args:
        model: folder or hub id, whose VAE and, if there are captions, text encoders are used.
        workers: number of processes that read, crop and degrade; with 0 this process does it.

    Raises:
        UserError: before anything heavy loads, if the settings do not fit the model or the folder, or another process
            prepares into it; at the end, if no image gave a crop.
    """
    out = Path(out)
    settings = settings_of(source, model, config)
    is_complete(out, settings)  # refuses what is no folder for this, before it is locked
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out, f"another `tsd prepare` writes to {out}: wait for it, or choose another --out"):
        return _prepare(source, out, model, settings, config, workers, device)


def _prepare(
    source: Source,
    out: Path,
    model: str | Path,
    settings: dict[str, Any],
    config: PrepareConfig,
    workers: int,
    device: str | torch.device,
) -> dict[str, Any]:
    folder = resolve_model(model)
    if is_complete(out, settings):
        shutil.rmtree(out / IN_PROGRESS, ignore_errors=True)  # left if the last run was killed in its last line
        return read_record(out)
    write_text(out / IN_PROGRESS / "settings.json", json.dumps(settings, indent=2) + "\n")
    for place in (out, out / PROMPTS, out / IN_PROGRESS):
        remove_leftovers(place)

    images = ImagePass(source, out, folder, config, settings, torch.device(device))
    images.run(workers)
    write_text(out / SKIPPED, _csv(images.skipped))
    if not images.rows:
        raise UserError(f"not one of the {images.seen} images gave a crop; the reasons are in {out / SKIPPED}")
    write_dataset_info(out, images.features, images.shards, _fingerprint(settings, images.rows))
    if config.captions.wanted:
        images.free_networks()
        _embed_captions(out, model, list(images.captions), settings, config, device)
    record = {
        "schema": SCHEMA,
        "settings": settings,
        "counts": {
            "images": images.seen,
            "crops": images.rows,
            "captions": len(images.captions),
            "skipped": len(images.skipped),
        },
        "device": torch.device(device).type,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: version(name) for name in LIBRARIES},
        "files": {path.relative_to(out).as_posix(): path.stat().st_size for path in _files(out)},
        "skipped": [{"name": name, "reason": reason} for name, reason in images.skipped],
    }
    write_text(out / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(out / IN_PROGRESS)
    return record


def _embed_captions(
    out: Path,
    model: str | Path,
    captions: list[str],
    settings: Mapping[str, Any],
    config: PrepareConfig,
    device: str | torch.device,
) -> None:
    """The second pass: every encoder runs once over the captions that are in no finished file."""
    from tsd.prompts.encode import encode_batches

    features = prompt_features(settings["prompt_shapes"])
    # Every file has complete batches, so that a resumed run makes the same batches, and with them the same last bits.
    size = -(-config.shard_captions // config.batch_size) * config.batch_size
    chunks = [captions[start : start + size] for start in range(0, len(captions), size)]
    names = [shard_name(number) for number in range(len(chunks))]
    done = next((number for number, name in enumerate(names) if not (out / PROMPTS / name).is_file()), len(names))
    if done < len(names):
        pending = [caption for chunk in chunks[done:] for caption in chunk]
        (out / PROMPTS).mkdir(exist_ok=True)
        batches = encode_batches(
            model,
            pending,
            device=device,
            dtype=torch_dtype(config.dtype),
            t5=config.captions.t5,
            batch_size=config.batch_size,
            spool_dir=out / PROMPTS,  # 0.3 MB a caption for SD3: this disk has room for the embeddings too
        )
        rows = _prompt_rows(pending, batches)
        for name, chunk in zip(names[done:], chunks[done:], strict=True):
            write_shard(out / PROMPTS / name, features, itertools.islice(rows, len(chunk)))
        next(rows, None)  # exhausts the iterator, so that the last encoder is freed
    write_dataset_info(out / PROMPTS, features, names, _fingerprint(settings, captions))


def _prompt_rows(captions: list[str], batches: Iterator[PromptEmbeds]) -> Iterator[dict[str, Any]]:
    start = 0
    for batch in batches:
        embeds = batch.embeds.to(torch.float16).numpy()
        pooled = None if batch.pooled is None else batch.pooled.to(torch.float16).numpy()
        for i in range(len(embeds)):
            row = {"caption": captions[start + i], "prompt_embeds": embeds[i]}
            if pooled is not None:
                row["pool_embeds"] = pooled[i]
            if not all(np.isfinite(value).all() for key, value in row.items() if key != "caption"):
                raise UserError(
                    f"the embeddings of {row['caption']!r} are beyond the range of fp16, in which they are kept"
                )
            yield row
        start += len(embeds)


def _files(out: Path) -> list[Path]:
    """The files that a complete folder must hold, except for the record itself."""
    names = ("dataset_info.json", "state.json")
    found = [*out.glob("data-*.arrow"), *(out / PROMPTS).glob("data-*.arrow")]
    return sorted([*found, *(place / name for place in {path.parent for path in found} for name in names)])


def _fingerprint(settings: Mapping[str, Any], content: Any) -> str:
    """A fingerprint for the caches of `datasets`; it differs for other settings or content."""
    return hashlib.sha256(json.dumps([settings, content]).encode()).hexdigest()[:16]


def _csv(skipped: list[tuple[str, str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("name", "reason"), *skipped])
    return buffer.getvalue()
