"""Hugging Face `datasets`: imports it with a clear error, and writes its on-disk format shard by shard.

`Dataset.save_to_disk` needs the whole data set at once, and `Dataset.map` starts over after a kill. Here every shard is
an Arrow file that is written atomically, and `write_dataset_info` adds the two small files with which
`datasets.load_from_disk` opens the folder.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsd.errors import UserError
from tsd.files import atomic_path, write_text

ROWS_PER_BATCH = 16  # rows of one Arrow record batch, which are held in memory while writing


def import_datasets() -> Any:
    """The library `datasets`, or a UserError that says how to get it."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("prepared data needs Hugging Face `datasets`: pip install 'tsd-sr-bench[train]'") from error
    if not hasattr(datasets, "load_from_disk"):
        raise UserError(
            "`import datasets` found a folder of that name instead of the library: run the `tsd` command rather than "
            "`python -m`, or set PYTHONSAFEPATH=1"
        )
    return datasets


def image_features(latent_shape: Sequence[int]) -> Any:
    """The columns of the crops; `posterior` is [2C, h, w], mean and logvar."""
    datasets = import_datasets()
    return datasets.Features(
        {
            "name": datasets.Value("string"),
            "crop": datasets.Value("int32"),
            "top": datasets.Value("int32"),
            "left": datasets.Value("int32"),
            "hr": datasets.Image(),
            "lr": datasets.Image(),
            "caption": datasets.Value("string"),
            "caption_id": datasets.Value("int32"),
            "posterior": datasets.Array3D(tuple(latent_shape), "float16"),
        }
    )


def prompt_features(shapes: Mapping[str, Sequence[int]]) -> Any:
    """The columns of the captions; `shapes` has `prompt_embeds` (L, D) and, for some families, `pool_embeds` (P,)."""
    datasets = import_datasets()
    columns: dict[str, Any] = {"caption": datasets.Value("string")}
    columns["prompt_embeds"] = datasets.Array2D(tuple(shapes["prompt_embeds"]), "float16")
    if "pool_embeds" in shapes:
        columns["pool_embeds"] = datasets.List(datasets.Value("float16"), length=shapes["pool_embeds"][0])
    return datasets.Features(columns)


def shard_name(number: int) -> str:
    """File name of a shard; sorts in the order of the rows."""
    return f"data-{number:05d}.arrow"


def write_shard(path: Path, features: Any, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as one Arrow file, atomically and one by one; returns their number.

    If there are no rows, no file is written.
    """
    from datasets.arrow_writer import ArrowWriter

    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return 0
    with atomic_path(path) as temporary:
        writer = ArrowWriter(features=features, path=str(temporary), writer_batch_size=ROWS_PER_BATCH)
        try:
            for row in itertools.chain([first], rows):
                writer.write(dict(row))
            count, _ = writer.finalize()
        finally:
            writer.close()
    return count


def write_dataset_info(folder: Path, features: Any, shards: list[str], fingerprint: str) -> None:
    """Writes `dataset_info.json` and `state.json`, with which `datasets.load_from_disk` opens a folder of shards.

    Args:
        shards: file names in the order of the rows.
        fingerprint: key of `datasets`' caches; must differ for different data.
    """
    from datasets import DatasetInfo

    info = DatasetInfo(features=features)
    keys = ("description", "citation", "homepage", "license")
    content = {key: getattr(info, key) for key in keys} | {"features": features.to_dict()}
    write_text(folder / "dataset_info.json", json.dumps(content, indent=2) + "\n")
    state = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(folder / "state.json", json.dumps(state, indent=2) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that a killed process left in a folder of shards."""
    for path in folder.glob(".*"):
        if path.is_file() and path.suffix in (".arrow", ".json", ".csv", ".tmp"):
            path.unlink()
