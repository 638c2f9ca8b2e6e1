import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch.utils.data import DataLoader, Subset

import datasets
from tsd.data.crops import CropConfig
from tsd.data.degrade import FULL, LIGHT, degrade
from tsd.data.pairs import PairDataset
from tsd.data.prepare import prepare
from tsd.data.prepare_config import CaptionConfig, PrepareConfig
from tsd.data.prepared import PreparedDataset
from tsd.data.prepared_record import is_prepared
from tsd.data.sources import FolderSource
from tsd.errors import UserError
from tsd.model.backbone import load_backbone
from tsd.seeds import seed_for

CROPS = CropConfig(crop=32, mode="random", per_image=1, degradation=FULL, usm=False, scale=4, seed=3)


@pytest.fixture(scope="module")
def prepared(tiny_sd3_text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six crops of flat gray, each of another brightness, with three captions. Read-only."""
    root = tmp_path_factory.mktemp("data")
    (root / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i,) * 3).save(root / "photos" / f"{i}.png")
        (root / "photos" / f"{i}.txt").write_text(f"gray {i % 3}")
    config = PrepareConfig(crops=CROPS, captions=CaptionConfig(from_source=True))
    prepare(FolderSource([root / "photos"], caption_files=True), root / "prepared", tiny_sd3_text_dir, config)
    return root / "prepared"


def brightness(item: dict) -> int:
    return round((float(item["hr"].mean()) + 1) * 127.5)


def test_an_item_is_what_the_folder_holds(prepared: Path):
    item = PreparedDataset(prepared, seed=1)[2]
    assert {key: (value.shape, value.dtype) for key, value in item.items() if key != "index"} == {
        "hr": ((3, 32, 32), torch.float32),
        "lr_up": ((3, 32, 32), torch.float32),
        "posterior": ((8, 4, 4), torch.float32),
        "prompt_embeds": ((333, 12), torch.float32),
        "pool_embeds": ((10,), torch.float32),
    }
    number = brightness(item) // 40
    row = datasets.load_from_disk(str(prepared)).with_format("numpy")[number]
    lr = (
        torch.from_numpy(np.asarray(datasets.load_from_disk(str(prepared))[number]["lr"]).copy()).permute(2, 0, 1) / 255
    )
    lr_up = F.interpolate(lr[None], scale_factor=4, mode="bicubic")[0].clamp(0, 1) * 2 - 1
    torch.testing.assert_close(item["lr_up"], lr_up)
    np.testing.assert_array_equal(item["posterior"].numpy(), row["posterior"])
    prompt = datasets.load_from_disk(str(prepared / "prompts")).with_format("numpy")[number % 3]
    assert prompt["caption"] == f"gray {number % 3}"
    np.testing.assert_array_equal(item["prompt_embeds"].numpy(), prompt["prompt_embeds"])
    np.testing.assert_array_equal(item["pool_embeds"].numpy(), prompt["pool_embeds"])


def test_the_posterior_is_the_backbone_s(prepared: Path, tiny_sd3_text_dir: Path):
    """A latent drawn from the stored moments equals one that is encoded anew, to half precision."""
    backbone = load_backbone(tiny_sd3_text_dir)
    item = PreparedDataset(prepared, seed=1)[0]
    stored = DiagonalGaussianDistribution(item["posterior"][None])
    draw = stored.sample(torch.Generator().manual_seed(5)) * backbone.vae.config["scaling_factor"]
    encoded = backbone.encode(item["hr"][None], posterior="sample", generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(draw, encoded, atol=5e-3, rtol=2e-3)


def test_the_order_is_that_of_pairs_made_on_the_fly(prepared: Path):
    photos = [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(6)]
    pairs = PairDataset(photos, crop=32, seed=9, length=18)
    dataset = PreparedDataset(prepared, seed=9, length=18)
    order = [brightness(dataset[i]) for i in range(18)]
    assert order == [brightness(pairs[i]) for i in range(18)]
    assert sorted(order[:6]) == sorted(order[6:12]) == [0, 40, 80, 120, 160, 200]
    assert order[:6] != order[6:12]
    assert order != [brightness(item) for item in (PreparedDataset(prepared, seed=8, length=18)[i] for i in range(18))]
    assert len(PreparedDataset(prepared, seed=9)) == 6
    for index in (18, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_degradation_on_the_fly_is_new_at_every_visit(prepared: Path):
    dataset = PreparedDataset(prepared, seed=2, length=12, degradation=LIGHT)
    for index in (1, 7):
        item = dataset[index]
        lr = degrade((item["hr"] + 1) / 2, LIGHT, seed_for(2, "degrade", index))
        expected = F.interpolate(lr[None], scale_factor=4, mode="bicubic")[0].clamp(0, 1) * 2 - 1
        torch.testing.assert_close(item["lr_up"], expected)
    by_image: dict[int, list[torch.Tensor]] = {}
    for index in range(12):
        item = dataset[index]
        by_image.setdefault(brightness(item), []).append(item["lr_up"])
    assert all(not torch.equal(*visits) for visits in by_image.values())


@pytest.mark.parametrize("degradation", [None, FULL], ids=["stored", "on-the-fly"])
def test_batches_workers_and_resuming_change_nothing(prepared: Path, degradation):
    dataset = PreparedDataset(prepared, seed=1, length=12, degradation=degradation)
    items = [dataset[i] for i in range(12)]
    for batch_size, workers, start in ((4, 0, 0), (3, 2, 0), (2, 0, 6)):
        loader = DataLoader(Subset(dataset, range(start, 12)), batch_size=batch_size, num_workers=workers)
        batches = list(loader)
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(start, 12))
        for key in ("hr", "lr_up", "posterior", "prompt_embeds", "pool_embeds"):
            got = torch.cat([batch[key] for batch in batches])
            assert torch.equal(got, torch.stack([item[key] for item in items[start:]]))


def test_workers_that_share_no_memory_can_read_it(prepared: Path, warm: Any):
    """They are forked from a process that never saw the data set (`warm`): it travels by pickle."""
    dataset = PreparedDataset(prepared, seed=1)
    (batch,) = DataLoader(dataset, batch_size=6, num_workers=1, multiprocessing_context=warm.context)
    assert torch.equal(batch["hr"], torch.stack([dataset[i]["hr"] for i in range(6)]))


def test_what_is_no_prepared_folder_is_explained(prepared: Path, tmp_path: Path):
    assert is_prepared(prepared)
    assert not is_prepared(tmp_path)
    with pytest.raises(UserError, match=r"no prepared data set \(it has no prepared\.json\)"):
        PreparedDataset(tmp_path, seed=0)
    with pytest.raises(UserError, match="no such folder"):
        PreparedDataset(tmp_path / "absent", seed=0)


def changed(prepared: Path, folder: Path, **content: object) -> Path:
    shutil.copytree(prepared, folder)
    record = json.loads((folder / "prepared.json").read_text()) | content
    (folder / "prepared.json").write_text(json.dumps(record))
    return folder


def test_empty_incomplete_and_foreign_folders_are_refused(prepared: Path, tmp_path: Path):
    counts = {"images": 3, "crops": 0, "captions": 0, "skipped": 3}
    with pytest.raises(UserError, match="empty: not one crop came of its 3 images"):
        PreparedDataset(changed(prepared, tmp_path / "empty", counts=counts), seed=0)
    with pytest.raises(UserError, match="schema 99, this version reads 1"):
        PreparedDataset(changed(prepared, tmp_path / "future", schema=99), seed=0)
    for name in ("data-00000.arrow", "prompts/data-00000.arrow"):
        cut = changed(prepared, tmp_path / f"cut-{name.replace('/', '-')}")
        with (cut / name).open("r+b") as file:
            file.truncate(100)
        with pytest.raises(UserError, match=f"1 of 6 files are missing or of another size, e.g. {name}"):
            PreparedDataset(cut, seed=0)
    (cut / "prepared.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        PreparedDataset(cut, seed=0)


def test_data_of_another_model_or_crop_is_refused(
    prepared: Path, tiny_sd3_text_dir: Path, tiny_sd3_dir: Path, tiny_sd2_dir: Path, tmp_path: Path
):
    dataset = PreparedDataset(prepared, seed=0)
    assert dataset.settings["crop"] == 32
    dataset.require(tiny_sd3_text_dir, crop=32)
    dataset.require(tiny_sd3_dir)  # another folder, the same VAE
    with pytest.raises(UserError, match="crops of 32 pixels, training asks for 64"):
        dataset.require(tiny_sd3_dir, crop=64)
    with pytest.raises(UserError, match=r"latents of another VAE .* prepare the images again with --model"):
        dataset.require(tiny_sd2_dir)

    other = shutil.copytree(tiny_sd3_dir, tmp_path / "wide")
    config = json.loads((other / "transformer" / "config.json").read_text())
    (other / "transformer" / "config.json").write_text(json.dumps(config | {"joint_attention_dim": 24}))
    with pytest.raises(UserError, match=r"embeddings of widths \(12, 10\) .* reads \(24, 10\)"):
        dataset.require(other)
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    with pytest.raises(UserError, match=r"latents of shape \[8, 4, 4\] .* makes \[32, 4, 4\]"):
        dataset.require(other)
