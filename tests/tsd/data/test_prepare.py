import csv
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import datasets
from tsd.data.crops import CropConfig, CropMaker, to_tensor
from tsd.data.degrade import FULL
from tsd.data.hf import remove_leftovers, write_shard
from tsd.data.prepare import prepare
from tsd.data.prepare_config import CaptionConfig, PrepareConfig
from tsd.data.prepared import PreparedDataset
from tsd.data.prepared_record import is_prepared
from tsd.data.sources import FolderSource, HubSource
from tsd.data.storage import Storage, storage_of
from tsd.errors import UserError
from tsd.files import alone_in, atomic_path, write_text
from tsd.prompts.encode import encode_texts

CROPS = CropConfig(crop=32, mode="random", per_image=2, degradation=FULL, usm=False, scale=4, seed=3)
FILES = PrepareConfig(
    crops=CROPS, captions=CaptionConfig(from_source=True), shard_images=2, shard_captions=2, batch_size=2
)
PLAIN = dataclasses.replace(FILES, captions=CaptionConfig())


def write_photos(folder: Path, count: int = 5) -> Path:
    """Photographs with captions, every third of them new, a file that is no photograph and one that is too small."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"the photo {i % 3}")
    (folder / "03-bad.png").write_bytes(b"no image")
    Image.new("RGB", (31, 60)).save(folder / "04-small.png")
    for name in ("03-bad.txt", "04-small.txt"):
        (folder / name).write_text("never used")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tiny_sd3_text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs prepared without interruption. Read-only."""
    out = tmp_path_factory.mktemp("data") / "uninterrupted"
    prepare(FolderSource([photos], caption_files=True), out, tiny_sd3_text_dir, FILES)
    return out


@contextmanager
def interrupted_at(shard: str) -> Iterator[None]:
    """Inside the block the run is interrupted before it writes this shard of images."""

    def stop(path: Path, *args: Any) -> int:
        if path.name == shard:
            raise KeyboardInterrupt
        return write_shard(path, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsd.data.image_pass.write_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, Any]]:
    return datasets.load_from_disk(str(folder)).with_format("numpy").to_list()


def test_the_result_is_one_data_set_of_the_library(uninterrupted: Path):
    pairs = datasets.load_from_disk(str(uninterrupted))
    assert pairs.column_names == ["name", "crop", "top", "left", "hr", "lr", "caption", "caption_id", "posterior"]
    assert pairs["name"][:] == [f"photos/{i:02d}.png" for i in range(5) for _ in range(2)]
    assert pairs["crop"][:] == [0, 1] * 5
    assert (pairs[0]["hr"].size, pairs[0]["lr"].size) == ((32, 32), (8, 8))
    assert pairs.features["posterior"].dtype == "float16"
    assert sorted(path.name for path in uninterrupted.glob("data-*")) == [f"data-0000{i}.arrow" for i in range(4)]


def test_crops_are_those_of_the_crop_maker(uninterrupted: Path, photos: Path):
    expected = [crop for image in FolderSource([photos]).images(0, None, 1) for crop in CropMaker(CROPS)[image].crops]
    for row, crop in zip(datasets.load_from_disk(str(uninterrupted)), expected, strict=True):
        assert (row["crop"], row["top"], row["left"]) == (crop.number, crop.top, crop.left)
        np.testing.assert_array_equal(np.asarray(row["hr"]), crop.hr)


def test_posteriors_are_the_vae_s_to_half_precision(uninterrupted: Path, tiny_sd3_text_dir: Path):
    vae = AutoencoderKL.from_pretrained(str(tiny_sd3_text_dir), subfolder="vae").eval()
    pairs = datasets.load_from_disk(str(uninterrupted)).with_format("numpy", columns=["posterior"])
    images = datasets.load_from_disk(str(uninterrupted))["hr"]
    for row, image in zip(pairs, images, strict=True):
        with torch.no_grad():
            parameters = vae.encode(to_tensor(np.asarray(image))[None] * 2 - 1).latent_dist.parameters[0]
        assert row["posterior"].shape == (8, 4, 4)
        np.testing.assert_array_equal(row["posterior"].astype(np.float16), parameters.half().numpy())


def test_embeddings_are_stored_once_per_distinct_caption(uninterrupted: Path, tiny_sd3_text_dir: Path):
    prompts = datasets.load_from_disk(str(uninterrupted / "prompts")).with_format("numpy")
    texts = ["the photo 0", "the photo 1", "the photo 2"]
    assert list(prompts["caption"][:]) == texts
    assert len(list((uninterrupted / "prompts").glob("data-*"))) == 2  # two captions a file
    expected = encode_texts(tiny_sd3_text_dir, texts, batch_size=2, progress=False)
    for i, row in enumerate(prompts):
        np.testing.assert_array_equal(row["prompt_embeds"].astype(np.float16), expected.embeds[i].half().numpy())
        np.testing.assert_array_equal(row["pool_embeds"].astype(np.float16), expected.pooled[i].half().numpy())
    pairs = datasets.load_from_disk(str(uninterrupted))
    assert [texts[i] for i in pairs["caption_id"]] == pairs["caption"][:]


def test_what_a_killed_process_left_of_any_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*arguments: object, **options: object) -> None:
        raise SystemExit

    monkeypatch.setattr("os.replace", killed)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(SystemExit):
        write_text(tmp_path / "00001.json", "{}")
    with pytest.raises(SystemExit), atomic_path(tmp_path / "data-00001.arrow"):
        pass
    monkeypatch.undo()
    (tmp_path / "00000.json").write_text("{}")
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.json"]


def test_bad_and_small_images_are_listed_and_left_out(uninterrupted: Path):
    with (uninterrupted / "skipped.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["name"] for row in listed] == ["photos/03-bad.png", "photos/04-small.png"]
    assert "not a readable" in listed[0]["reason"]
    assert listed[1]["reason"] == "31x60 is smaller than the 32x32 crop"


def test_the_record_states_settings_counts_and_versions(uninterrupted: Path, tmp_path: Path):
    record = json.loads((uninterrupted / "prepared.json").read_text())
    assert record["counts"] == {"images": 7, "crops": 10, "captions": 3, "skipped": 2}
    assert record["skipped"][1]["name"] == "photos/04-small.png"
    settings = record["settings"]
    assert (settings["crop"], settings["latent_shape"], settings["family"]) == (32, [8, 4, 4], "sd3")
    assert settings["prompt_shapes"] == {"prompt_embeds": [333, 12], "pool_embeds": [10]}
    assert settings["degradation"]["first"]["noise_range"] == list(FULL.first.noise_range)
    assert settings["captions"] == {"from_source": True, "model": None, "text": None, "t5": True}
    assert len(settings["model_sha256"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    assert str(uninterrupted.parent) not in json.dumps(record)  # no paths of the machine
    assert not (uninterrupted / "in-progress").exists()


def test_workers_change_nothing(uninterrupted: Path, photos: Path, tiny_sd3_text_dir: Path, tmp_path: Path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        prepare(FolderSource([photos], caption_files=True), out, tiny_sd3_text_dir, FILES, workers=workers)
        assert contents(out) == contents(uninterrupted)


@pytest.mark.parametrize("moment", ["images", "between", "captions", "record"])
def test_an_interrupted_run_continues_and_ends_with_the_same_bytes(
    moment: str,
    uninterrupted: Path,
    photos: Path,
    tiny_sd3_text_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The process stops before a write; the unfinished file stays behind under its temporary name."""
    source, out = FolderSource([photos], caption_files=True), tmp_path / "out"
    places = {
        "images": ("tsd.data.image_pass.write_shard", "data-00002.arrow"),
        "between": ("tsd.data.image_pass.write_text", "00002.json"),
        "captions": ("tsd.data.prepare.write_shard", "data-00001.arrow"),
        "record": ("tsd.data.prepare.write_text", "prepared.json"),
    }
    name, file = places[moment]
    owner, function = name.rsplit(".", 1)
    real = getattr(sys.modules[owner], function)

    def stop(path: Path, *args: Any) -> Any:
        if path.name == file:
            (path.parent / f".{path.stem}.abc{path.suffix}").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(path, *args)

    monkeypatch.setattr(sys.modules[owner], function, stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, tiny_sd3_text_dir, FILES)
    monkeypatch.undo()
    assert is_prepared(out)
    with pytest.raises(UserError, match=r"half-written.*the same command continues"):
        PreparedDataset(out, seed=0)
    other = dataclasses.replace(FILES, crops=dataclasses.replace(CROPS, seed=4))
    with pytest.raises(UserError, match=r"was begun with other settings: seed 3 there, 4 here"):
        prepare(source, out, tiny_sd3_text_dir, other)
    made: list[str] = []

    def count(path: Path, *args: Any) -> int:
        made.append(path.name)
        return write_shard(path, *args)

    monkeypatch.setattr("tsd.data.image_pass.write_shard", count)
    prepare(source, out, tiny_sd3_text_dir, FILES)
    # Only what is missing is made: a shard without its note counts as missing.
    assert made == (["data-00002.arrow", "data-00003.arrow"] if moment in ("images", "between") else [])
    assert contents(out) == contents(uninterrupted)


@pytest.mark.parametrize("suffix", [".png", ".txt"])
def test_what_changed_while_a_run_was_interrupted_is_refused_and_what_was_put_back_is_not(
    suffix: str,
    uninterrupted: Path,
    photos: Path,
    tiny_sd3_text_dir: Path,
    tmp_path: Path,
):
    """A replaced file may have the size of the one before."""
    mine, out = tmp_path / photos.name, tmp_path / "out"
    shutil.copytree(photos, mine)

    with interrupted_at("data-00002.arrow"):
        prepare(FolderSource([mine], caption_files=True), out, tiny_sd3_text_dir, FILES)
    first = sorted(mine.glob(f"*{suffix}"))[0]
    before = first.read_bytes()
    first.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"^{mine.name}/{first.stem}\.png: changed since .* was begun"):
        prepare(FolderSource([mine], caption_files=True), out, tiny_sd3_text_dir, FILES)
    first.write_bytes(before)
    prepare(FolderSource([mine], caption_files=True), out, tiny_sd3_text_dir, FILES)
    assert contents(out) == contents(uninterrupted)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    uninterrupted: Path, photos: Path, tiny_sd3_text_dir: Path, tmp_path: Path, warm: Any
):
    """Sends SIGKILL whenever a new file has appeared on disk, until a run gets through."""
    out = tmp_path / "out"
    arguments = ["prepare", photos, "--out", out, "--model", tiny_sd3_text_dir, "--caption-files", "--crop", 32]
    arguments += [
        "--crops-per-image",
        2,
        "--seed",
        3,
        "--no-usm",
        "--shard-images",
        2,
        "--batch-size",
        2,
        "--workers",
        1,
    ]
    kills = 0
    while kills < 3:
        known = set(out.rglob("*")) if out.exists() else set()
        process, _ = warm.start("tsd", *arguments, cwd=tmp_path)
        while process.exitcode is None and not (set(out.rglob("data-*")) - known):
            time.sleep(0.001)
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        if (out / "prepared.json").exists():
            break
    assert kills
    assert warm.run("tsd", *arguments, cwd=tmp_path).returncode == 0
    expected = contents(uninterrupted)
    expected_rows, got = rows(uninterrupted), rows(out)
    assert str(got) == str(expected_rows)
    assert {name: data for name, data in contents(out).items() if name.startswith("data-")} == {
        name: data for name, data in expected.items() if name.startswith("data-")
    }


def test_a_finished_folder_is_left_alone_or_refused(
    uninterrupted: Path, photos: Path, tiny_sd3_text_dir: Path, tmp_path: Path
):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    prepare(FolderSource([photos], caption_files=True), uninterrupted, tiny_sd3_text_dir, FILES)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
    without = dataclasses.replace(FILES, captions=CaptionConfig(from_source=True, t5=False))
    with pytest.raises(UserError, match=r"holds data with other settings: captions\.t5 True there, False here"):
        prepare(FolderSource([photos], caption_files=True), uninterrupted, tiny_sd3_text_dir, without)
    more = write_photos(tmp_path / "photos", 6)
    with pytest.raises(UserError, match=r"source\.images 7 there, 8 here; source\.names_sha256"):
        prepare(FolderSource([more], caption_files=True), uninterrupted, tiny_sd3_text_dir, FILES)


def test_two_processes_do_not_share_a_folder(
    photos: Path, tiny_sd3_text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tsd.files.PATIENCE_SECONDS", 0)
    with alone_in(tmp_path, "busy"), pytest.raises(UserError, match="another `tsd prepare` writes to"):
        prepare(FolderSource([photos], caption_files=True), tmp_path, tiny_sd3_text_dir, FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_prompt_is_stored_once(photos: Path, tiny_sd3_text_dir: Path, tmp_path: Path):
    config = dataclasses.replace(FILES, captions=CaptionConfig(text="the sea", t5=False))
    record = prepare(FolderSource([photos]), tmp_path / "out", tiny_sd3_text_dir, config)
    assert record["counts"]["captions"] == 1
    item = PreparedDataset(tmp_path / "out", seed=0)[3]
    expected = encode_texts(tiny_sd3_text_dir, ["the sea"], t5=False, progress=False).embeds[0]
    torch.testing.assert_close(item["prompt_embeds"], expected.half().float())
    assert not item["prompt_embeds"][77:].any()  # type: ignore[index]  # where T5's would be


def test_a_model_captions_what_has_no_file(photos: Path, tiny_sd3_text_dir: Path, tiny_blip_dir: Path, tmp_path: Path):
    from tsd.data.captions import Captioner

    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.png", "00.txt", "01.png"):
        (few / name).write_bytes((photos / name).read_bytes())
    config = dataclasses.replace(FILES, captions=CaptionConfig(from_source=True, model=str(tiny_blip_dir)))
    source = FolderSource([few], caption_files=True, fallback=True)
    record = prepare(source, tmp_path / "out", tiny_sd3_text_dir, config)
    pairs = datasets.load_from_disk(str(tmp_path / "out"))
    captioner = Captioner(str(tiny_blip_dir))
    expected = captioner([np.asarray(image) for image in pairs["hr"]])
    assert pairs["caption"][:] == ["the photo 0"] * 2 + expected[2:]
    assert record["settings"]["captions"]["model"] == tiny_blip_dir.name


def test_images_without_any_caption_are_left_out(photos: Path, tiny_sd3_text_dir: Path, tmp_path: Path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.png", "00.txt", "01.png", "01.txt"):
        (few / name).write_bytes((photos / name).read_bytes())
    source = FolderSource([few], caption_files=True)
    (few / "01.txt").write_text(" \n")
    record = prepare(source, tmp_path / "out", tiny_sd3_text_dir, FILES)
    assert record["skipped"] == [{"name": "few/01.png", "reason": "no caption"}]
    assert record["counts"]["crops"] == 2


def test_without_captions_no_text_encoder_is_needed(photos: Path, tiny_sd3_dir: Path, tmp_path: Path):
    prepare(FolderSource([photos]), tmp_path / "out", tiny_sd3_dir, PLAIN)
    assert not (tmp_path / "out" / "prompts").exists()
    assert set(PreparedDataset(tmp_path / "out", seed=0)[0]) == {"hr", "lr_up", "index", "posterior"}


def test_the_second_family(photos: Path, tiny_sd2_dir: Path, tmp_path: Path):
    record = prepare(FolderSource([photos]), tmp_path / "out", tiny_sd2_dir, PLAIN)
    assert record["settings"]["family"] == "sd2"
    vae = AutoencoderKL.from_pretrained(str(tiny_sd2_dir), subfolder="vae").eval()
    item = PreparedDataset(tmp_path / "out", seed=0)[0]
    with torch.no_grad():
        expected = vae.encode(item["hr"][None]).latent_dist.parameters[0]  # type: ignore[index]
    torch.testing.assert_close(item["posterior"], expected.half().float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_library_is_prepared_and_continued(
    streaming: bool, photos: Path, tiny_sd3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = sorted(photos.glob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in files]
    features = datasets.Features({"image": datasets.Image()})
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "hub" / "train.parquet")

    def source() -> HubSource:
        return HubSource(str(tmp_path / "hub"), streaming=streaming)

    prepare(source(), tmp_path / "uninterrupted", tiny_sd3_dir, PLAIN)

    with interrupted_at("data-00001.arrow"):
        prepare(source(), tmp_path / "out", tiny_sd3_dir, PLAIN)
    record = prepare(source(), tmp_path / "out", tiny_sd3_dir, PLAIN)
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")
    assert record["counts"] == {"images": 7, "crops": 10, "captions": 0, "skipped": 2}


def test_nothing_heavy_loads_before_settings_are_checked(
    photos: Path, tiny_sd3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", never)
    source, out = FolderSource([photos]), tmp_path / "out"
    with pytest.raises(UserError, match="multiple of 16 for this model and scale, got 40"):
        prepare(source, out, tiny_sd3_dir, dataclasses.replace(PLAIN, crops=dataclasses.replace(CROPS, crop=40)))
    with pytest.raises(UserError, match="crops per image must be 1 or more"):
        prepare(source, out, tiny_sd3_dir, dataclasses.replace(PLAIN, crops=dataclasses.replace(CROPS, per_image=0)))
    with pytest.raises(UserError, match="text_encoder"):
        prepare(source, out, tiny_sd3_dir, dataclasses.replace(PLAIN, captions=CaptionConfig(text="x")))
    assert not out.exists()
    with pytest.raises(UserError, match="did not write it"):
        prepare(source, photos, tiny_sd3_dir, PLAIN)
    with pytest.raises(UserError, match="is a file"):
        prepare(source, photos / "00.png", tiny_sd3_dir, PLAIN)


def test_images_that_all_fail_are_an_error_with_the_list(tiny_sd3_dir: Path, tmp_path: Path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"not one of the 1 images.*skipped\.csv"):
        prepare(FolderSource([tmp_path / "bad"]), tmp_path / "out", tiny_sd3_dir, PLAIN)
    assert "bad/a.png" in (tmp_path / "out" / "skipped.csv").read_text()


def test_storage_of_the_paper_s_case():
    """SD3 at 512: 333 x 4096 tokens and 2048 pooled in fp16, 32 x 64 x 64 latent parameters."""
    settings = {"crop": 512, "scale": 4, "usm": False, "latent_shape": [32, 64, 64]}
    storage = storage_of(settings | {"prompt_shapes": {"prompt_embeds": [333, 4096], "pool_embeds": [2048]}})
    assert storage.embeddings == 2_727_936 + 4_096
    assert storage.posterior == 262_144
    assert storage.total(95_000, 95_000) == 95_000 * (storage.hr + storage.lr + 262_144 + 2_732_032)
    assert "259.5 GB" in storage.to_text(95_000, 95_000)
    assert storage_of(settings | {"prompt_shapes": {}}).embeddings == 0
    assert "2.7 TB" in Storage(0, 0, 0, 2_732_032).to_text(0, 10**6)


def test_stored_bytes_are_those_that_were_estimated(uninterrupted: Path):
    """Exact for the numbers; Arrow adds little."""
    storage = storage_of(json.loads((uninterrupted / "prepared.json").read_text())["settings"])
    prompts = datasets.load_from_disk(str(uninterrupted / "prompts"))
    assert storage.embeddings == 2 * (333 * 12 + 10)
    assert prompts.data.nbytes == pytest.approx(3 * storage.embeddings, rel=0.5)
