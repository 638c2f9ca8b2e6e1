"""The data of a run: its data set, the numbers of its samples, and batches in the form that the turns take.

A sample's number decides everything random about it. Step s of a run with a global batch of n reads the numbers
s·n … s·n + n − 1, however many processes and micro-batches share them. A critic's warm-up reads the numbers after those
of the student's steps, which are thus the same whatever its length.
"""

import json
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tsd.algorithm.turns import Batch
from tsd.config import RunConfig, TrainConfig
from tsd.data.degrade import FULL, LIGHT, DegradationConfig
from tsd.data.pairs import CropDataset, ImageInput, PairDataset
from tsd.errors import UserError
from tsd.model.prompt import PromptEmbeds
from tsd.train import fingerprint


class SampleNumbers(Sampler[int]):
    """The sample numbers of this process from `first_step` on, in order (the data set shuffles)."""

    def __init__(self, config: RunConfig, first_step: int, process: int, processes: int) -> None:
        self.config, self.first_step, self.process, self.processes = config, first_step, process, processes

    def __iter__(self) -> Iterator[int]:
        config = self.config
        for step in range(self.first_step, config.total_steps):
            for micro in range(config.gradient_accumulation):
                number = config.stretch_of(step) * config.gradient_accumulation + micro
                start = (number * self.processes + self.process) * config.batch_size
                yield from range(start, start + config.batch_size)

    def __len__(self) -> int:
        steps = self.config.total_steps - self.first_step
        return steps * self.config.gradient_accumulation * self.config.batch_size


def degradation_of(config: TrainConfig) -> DegradationConfig:
    return {"full": FULL, "light": LIGHT}[config.degradation]


def open_data(
    given: str | Path | Sequence[ImageInput] | Dataset[dict[str, Any]],
    config: RunConfig,
    processes: int,
    exclude: Path | None = None,
) -> Dataset[dict[str, Any]]:
    """Opens folders of images, files or arrays as crops, one folder that `tsd prepare` wrote, or a data set object.

    Args:
        exclude: the run's own folder, whose pictures are no training images.

    Raises:
        UserError: nothing usable in the sources; a prepared set that is incomplete, or one among other sources; a data
            set object that does not keep the contract of `require_dataset`.
    """
    length = config.total_steps * config.global_batch(processes)
    if isinstance(given, Dataset):
        require_dataset(given, length, distils=isinstance(config, TrainConfig))
        return given
    sources = as_sources(given)
    folder = prepared_folder(sources)
    if folder is not None:
        from tsd.data.prepared import PreparedDataset

        degradation = degradation_of(config) if isinstance(config, TrainConfig) and config.degrade_anew else None
        return PreparedDataset(folder, seed=config.seed, length=length, degradation=degradation)
    if isinstance(config, TrainConfig):
        return PairDataset(
            sources,
            crop=config.crop,
            seed=config.seed,
            length=length,
            degradation=degradation_of(config),
            usm=config.usm,
            exclude=exclude,
        )
    return CropDataset(sources, crop=config.crop, seed=config.seed, length=length, usm=config.usm, exclude=exclude)


def require_dataset(data: Dataset[dict[str, Any]], length: int, *, distils: bool) -> None:
    """Checks a data set object of the caller's own: what it declares, and its first item.

    `data[number]` must be a function of the sample's running number alone (`SampleNumbers`), so that a resumed run and
    several processes see the same samples. Its items are those of `PairDataset`, of any height and width that the
    model takes: `{"hr": (3, H, W), "lr_up": (3, H, W), "index": number}`, floats in [-1, 1]; the teacher's data need
    no `lr_up`. Captions (`prompt_embeds` (L, D), `pool_embeds` (P,)) and the moments of q(z | x_H) (`posterior`,
    (2C, h, w)) may be among them. `data.fingerprint` is a text by which the data are recognised on resumption.

    Raises:
        UserError: no fingerprint, fewer samples than the `length` that the run reads, or an item of another form.
    """
    name = type(data).__name__
    declared = getattr(data, "fingerprint", None)
    if not isinstance(declared, str) or not declared:
        raise UserError(
            f"the data set {name} has the fingerprint {declared!r}; give it an attribute `fingerprint`, a text that "
            f"changes whenever its samples do"
        )
    if isinstance(data, Sized) and len(data) < length:
        raise UserError(f"the data set {name} holds {len(data):,} samples; this run reads {length:,}")
    item = data[0]
    needed = ("hr", "lr_up", "index") if distils else ("hr", "index")
    absent = [key for key in needed if key not in item]
    if absent:
        raise UserError(f"an item of {name} lacks {', '.join(absent)}; it has {', '.join(item) or 'nothing'}")
    hr = item["hr"]
    if not isinstance(hr, Tensor) or hr.ndim != 3 or not hr.is_floating_point():
        raise UserError(f"hr of {name} is {_form(hr)}; expected floats of shape (3, H, W)")
    if distils and _form(item["lr_up"]) != _form(hr):
        raise UserError(f"lr_up of {name} is {_form(item['lr_up'])}; expected what hr is, {_form(hr)}")
    if int(item["index"]) != 0:
        raise UserError(f"the item 0 of {name} has the index {item['index']!r}; expected its own number")


def _form(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def as_sources(given: str | Path | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """The sources as a sequence, even if it is one path."""
    return [given] if isinstance(given, str | Path) else given


def prepared_folder(sources: Sequence[ImageInput]) -> Path | None:
    """The prepared data set among the sources, which must then be the only one."""
    from tsd.data.prepared_record import is_prepared

    folders = [Path(source) for source in sources if not isinstance(source, np.ndarray)]
    prepared = [folder for folder in folders if is_prepared(folder)]
    if prepared and len(sources) > 1:
        raise UserError(f"{prepared[0]} is a prepared data set and must be the only --data; got {len(sources)} sources")
    return prepared[0] if prepared else None


def data_record(data: Dataset[dict[str, Any]], prepared: Path | None) -> dict[str, str]:
    """The fingerprints by which the data are recognised on resumption: `data`, and `contents` of image files.

    Args:
        prepared: the folder, if `tsd prepare` wrote the data.
    """
    if prepared is not None:
        files = ((path.relative_to(prepared).as_posix(), path) for path in prepared.rglob("*.arrow"))
        settings: Any = data.settings  # pyright: ignore[reportAttributeAccessIssue]
        told = fingerprint.of_text(json.dumps(settings, sort_keys=True, default=str))
        return {"data": f"{fingerprint.of_files(files)}-{told}"}
    known: Any = data
    if not isinstance(data, PairDataset):
        return {"data": known.fingerprint}
    listed = data.listing()
    readable = [image for name, image in zip(data.names, data.images, strict=True) if name not in listed]
    return {"data": fingerprint.of_images(readable), "contents": fingerprint.of_contents(readable)}


def batches(
    data: Dataset[dict[str, Any]],
    config: RunConfig,
    first_step: int,
    *,
    process: int,
    processes: int,
    workers: int,
    device: torch.device,
    report: Callable[[dict[str, str]], None] = lambda news: None,
) -> Iterator[Batch]:
    """Yields this process's micro-batches from `first_step` on, on `device`.

    Args:
        report: called with the files that could not be read since the last batch, and the reasons.
    """
    loader = DataLoader(
        data,
        batch_size=config.batch_size,
        sampler=SampleNumbers(config, first_step, process, processes),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=_collate,
    )
    for item in loader:
        for news in item.pop("unreadable", []):
            report(news)
        yield to_batch(item, device)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """torch's batch of the items, and a list of what some of them say could not be read."""
    news = [item.pop("unreadable") for item in items if "unreadable" in item]
    return default_collate(items) | ({"unreadable": news} if news else {})


def to_batch(item: dict[str, Tensor], device: torch.device) -> Batch:
    """Makes a batch of a collated item, with the captions and stored posteriors of prepared data if there are any.

    Without low-quality images (the teacher's data) `x_L` is `x_H`.
    """
    x_H = item["hr"].to(device, non_blocking=True)
    x_L = item["lr_up"].to(device, non_blocking=True) if "lr_up" in item else x_H
    prompt = PromptEmbeds(item["prompt_embeds"], item.get("pool_embeds")) if "prompt_embeds" in item else None
    return Batch(
        x_L,
        x_H,
        item["index"].tolist(),
        prompt=prompt.to(device) if prompt is not None else None,
        posterior=item["posterior"].to(device, non_blocking=True) if "posterior" in item else None,
    )
