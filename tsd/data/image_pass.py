"""The first pass over the images: crops, degraded crops, captions and latents, in shards; it can be resumed."""

import gc
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tsd.console.progress import Progress
from tsd.data.captions import Captioner
from tsd.data.crops import Crop, CropMaker, CroppedImage, to_tensor
from tsd.data.hf import image_features, shard_name, write_shard
from tsd.data.prepare_config import PrepareConfig
from tsd.data.prepared_record import IN_PROGRESS
from tsd.data.sources import Source, SourceImage, Stamp
from tsd.errors import UserError, some
from tsd.files import write_text
from tsd.precision import torch_dtype


class ImagePass:
    """The first pass and its progress so far; finished shards are read back, not made again.

    Attributes:
        seen, rows: images processed and crops written.
        captions: id of every distinct caption, in order of first appearance.
        skipped: (name, reason) of images left out.
        shards: files that hold rows, in order.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        folder: Path,
        config: PrepareConfig,
        settings: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.source, self.out, self.folder, self.config, self.device = source, out, folder, config, device
        self.seen = self.rows = self.finished = 0
        self.captions: dict[str, int] = {}
        self.skipped: list[tuple[str, str]] = []
        self.shards: list[str] = []
        self.stream_state: dict[str, Any] | None = None
        self.exhausted = False
        self._vae: Any = None
        self._captioner: Captioner | None = None
        self.features = image_features(settings["latent_shape"])

    def run(self, workers: int) -> None:
        """Processes all images that are in no finished shard.

        Raises:
            UserError: an image in a finished shard has changed since.
        """
        changed: list[str] = []
        while (note := self.out / IN_PROGRESS / f"{self.finished:05d}.json").is_file():
            content = json.loads(note.read_text(encoding="utf-8"))
            stamps = content.get("stamps", {}).items()
            changed += [name for name, stamp in stamps if not self.source.is_unchanged(name, Stamp(*stamp))]
            self._add_finished(content)
        if changed:
            raise UserError(
                f"{some(changed)}: changed since {self.out} was begun, which holds crops of the earlier content; put "
                f"that back, or give another --out"
            )
        if self.exhausted or self.seen == self.source.length:
            return
        self._load_networks()
        size = self.config.shard_images
        tasks = self.source.images(self.seen, self.stream_state, size)
        loader = DataLoader(
            CropMaker(self.config.crops),
            sampler=tasks,  # type: ignore[arg-type]  # the data set is indexed with what this yields
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
        )
        with Progress(total=self.source.length, desc="images", unit="image", initial=self.seen) as bar:
            shards = itertools.groupby(_with_progress(loader, bar, self), key=lambda image: image.source.index // size)
            for number, images in shards:
                self._add_finished(self._write(number, images))

    def _write(self, number: int, images: Iterator[CroppedImage]) -> dict[str, Any]:
        """Writes one shard, then the note beside it; a shard without its note counts as unfinished."""
        note: dict[str, Any] = {"images": 0, "skipped": [], "captions": [], "resume": None, "stamps": {}}

        def kept() -> Iterator[tuple[CroppedImage, Crop]]:
            for image in images:
                note["images"] += 1
                note["resume"] = image.source.stream_state
                if (stamp := self.source.stamp(image.source.name)) is not None:
                    note["stamps"][image.source.name] = astuple(stamp)
                reason = image.reason or ("" if self._has_caption(image.source) else "no caption")
                if reason:
                    note["skipped"].append([image.source.name, reason])
                else:
                    yield from ((image, crop) for crop in image.crops)

        rows = (row for batch in _batches(kept(), self.config.batch_size) for row in self._rows(batch, note))
        note["crops"] = write_shard(self.out / shard_name(number), self.features, rows)
        note["last"] = note["images"] < self.config.shard_images
        write_text(self.out / IN_PROGRESS / f"{number:05d}.json", json.dumps(note) + "\n")
        return note

    def _rows(self, batch: list[tuple[CroppedImage, Crop]], note: dict[str, Any]) -> Iterator[dict[str, Any]]:
        captions = self._caption(batch)
        for (image, crop), caption in zip(batch, captions, strict=True):
            if self.config.captions.wanted and not caption:
                note["skipped"].append([image.source.name, f"crop {crop.number}: the caption model found no words"])
                continue
            posterior = self._encode(crop.hr)
            if not np.isfinite(posterior).all():
                note["skipped"].append([image.source.name, f"crop {crop.number}: the latent is beyond fp16"])
                continue
            if caption and caption not in self.captions:
                self.captions[caption] = len(self.captions)
                note["captions"].append(caption)
            yield {
                "name": image.source.name,
                "crop": crop.number,
                "top": crop.top,
                "left": crop.left,
                "hr": {"bytes": crop.hr_file, "path": None},
                "lr": {"bytes": crop.lr_file, "path": None},
                "caption": caption,
                "caption_id": self.captions.get(caption, -1),
                "posterior": posterior,
            }

    def _add_finished(self, note: Mapping[str, Any]) -> None:
        """Adds a finished shard to the progress."""
        if note["crops"]:
            self.shards.append(shard_name(self.finished))
        self.finished += 1
        self.seen += note["images"]
        self.rows += note["crops"]
        self.skipped += [(name, reason) for name, reason in note["skipped"]]
        for caption in note["captions"]:
            self.captions.setdefault(caption, len(self.captions))
        self.stream_state, self.exhausted = note["resume"], note["last"]

    def _has_caption(self, source: SourceImage) -> bool:
        captions = self.config.captions
        return not captions.wanted or bool(source.caption or captions.model or captions.text)

    def _caption(self, batch: list[tuple[CroppedImage, Crop]]) -> list[str]:
        captions = [image.source.caption for image, _ in batch]
        empty = [position for position, caption in enumerate(captions) if not caption]
        if empty and self._captioner is not None:
            for position, text in zip(empty, self._captioner([batch[i][1].hr for i in empty]), strict=True):
                captions[position] = text
        return [caption or self.config.captions.text or "" for caption in captions]

    @torch.no_grad()
    def _encode(self, hr: np.ndarray) -> np.ndarray:
        """(S, S, 3) uint8 → (2C, h, w) float16, one image at a time: batches would change the last bits."""
        x = (to_tensor(hr)[None] * 2 - 1).to(self.device, self._vae.dtype)
        return self._vae.encode(x).latent_dist.parameters[0].to("cpu", torch.float16).numpy()

    def free_networks(self) -> None:
        """Frees VAE and caption model, to make room for the text encoders."""
        self._vae = self._captioner = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load_networks(self) -> None:
        from tsd.model.backbone import load_vae

        dtype = torch_dtype(self.config.dtype)
        vae = load_vae(self.folder, dtype)
        self._vae = vae.to(self.device).eval().requires_grad_(False)
        wanted = self.config.captions.model
        self._captioner = Captioner(wanted, device=self.device, dtype=dtype) if wanted else None


def _with_progress(images: Iterable[CroppedImage], bar: Any, image_pass: ImagePass) -> Iterator[CroppedImage]:
    """Passes the images on, and shows progress and how many were left out."""
    left_out = len(image_pass.skipped)
    for image in images:
        yield image
        left_out += bool(image.reason)
        bar.update()
        if left_out:
            bar.set_postfix_str(f"{left_out} left out", refresh=False)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _unchanged(item: Any) -> Any:
    """Returns the item as it is; `DataLoader` by default turns arrays into tensors."""
    return item
