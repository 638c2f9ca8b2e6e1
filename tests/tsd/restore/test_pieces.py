import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from tsd.config import RestoreConfig
from tsd.console.stages import STAGES
from tsd.errors import UserError
from tsd.fast.decoder import SmallDecoder
from tsd.images import ImageError, Scan, read_picture
from tsd.model.backbone import load_backbone
from tsd.restore import pieces
from tsd.restore.memory import available_bytes, plan
from tsd.restore.pieces import restore_file, smallest_window
from tsd.restore.restorer import Restorer

CONFIG = RestoreConfig(scale=2, process_size=0, posterior="mode", tile=32)


def build(model: Path, folder: Path, *, attention: bool) -> Restorer:
    """The tiny model with a VAE of two levels, so that halos are small and a test short."""
    shutil.copytree(model, folder)
    shutil.rmtree(folder / "vae")
    torch.manual_seed(11)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=1.5, mid_block_add_attention=attention,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return Restorer(load_backbone(folder), CONFIG, {})


@pytest.fixture(scope="module")
def restorer(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    return build(tiny_sd3_dir, tmp_path_factory.mktemp("pieces") / "model", attention=False)


@pytest.fixture(scope="module")
def attentive(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    return build(tiny_sd3_dir, tmp_path_factory.mktemp("pieces") / "attentive", attention=True)


def configured(restorer: Restorer, **settings: object) -> Restorer:
    return Restorer(restorer.backbone, replace(restorer.config, **settings), {}, decoder=restorer.decoder)


def photograph(height: int, width: int) -> np.ndarray:
    """Edges, gradients, and texture that is not the same everywhere, as 16-bit colours."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    random = np.random.default_rng(3)
    texture = random.normal(0, 0.08, (height, width, 3)) * (x > 0.4)[..., None]
    color = np.stack([0.2 + 0.6 * x, 0.5 + 0.4 * np.sin(40 * y * y), np.where(x + y > 0.9, 0.8, 0.1)], axis=-1)
    return np.rint((color + texture).clip(0, 1) * 65535).astype(np.uint16)


def whole(restorer: Restorer, scan: Scan, name: str = "") -> np.ndarray:
    return restorer.restore_picture(scan.picture(), name).to_uint(scan.depth).astype(int)


def in_pieces(restorer: Restorer, scan: Scan, path: Path, name: str = "", window: int = 0) -> np.ndarray:
    restore_file(restorer, scan, path, name, window=window or smallest_window(restorer))
    return read_picture(path).to_uint(scan.depth).astype(int)


class TestTheSameAsInOnePiece:
    """With as many measuring passes as a network has normalisations, which no tolerance cuts short."""

    @pytest.fixture(autouse=True)
    def _exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pieces, "TOLERANCE", -1)
        monkeypatch.setattr(pieces, "DRAWN", 512)
        monkeypatch.setattr(pieces, "COLUMNS", 100)

    def test_but_for_rounding_also_where_the_size_is_no_multiple(self, restorer: Restorer, tmp_path: Path) -> None:
        scan = Scan(photograph(49, 54))  # 122.5 x 135 from 120 x 128: every resizing is at work
        sampling = configured(restorer, posterior="sample", scale=2.5)
        expected = whole(sampling, scan, "name")
        found = in_pieces(sampling, scan, tmp_path / "a.png", "name")
        assert found.shape == (123, 135, 3)
        assert np.abs(found - expected).max() <= 8  # of 65535
        other = whole(sampling, scan, "another")
        assert np.abs(other - expected).max() > 100

    def test_with_adain(self, restorer: Restorer, tmp_path: Path) -> None:
        scan = Scan((photograph(60, 61) // 257).astype(np.uint8))
        aligned = configured(restorer, color="adain")
        difference = np.abs(in_pieces(aligned, scan, tmp_path / "a.tif") - whole(aligned, scan))
        assert (difference > 0).mean() < 0.01  # a value that rounding moves over a level is truncated to another one

    def test_a_small_decoder_and_black_and_white_with_alpha(self, restorer: Restorer, tmp_path: Path) -> None:
        torch.manual_seed(5)
        tiny = AutoencoderTiny(
            latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), upsampling_scaling_factor=2, scaling_factor=1.0,
        )  # fmt: skip
        small = Restorer(restorer.backbone, CONFIG, {}, decoder=SmallDecoder(tiny, restorer.backbone.vae.config).eval())
        gray = photograph(60, 64)[..., :1]
        scan = Scan(np.concatenate([gray, gray, gray, photograph(60, 64)[..., 1:2]], axis=2), icc_profile=None)
        found, expected = in_pieces(small, scan, tmp_path / "a.png"), whole(small, scan)
        assert found.shape == (120, 128, 4)
        assert np.abs(found - expected).max() <= 8
        assert np.ptp(found[..., :3], axis=2).max() == 0


SCENES = {
    "photograph": photograph(60, 64),
    "gradient": np.rint(np.indices((60, 64)).sum(axis=0)[..., None] * [500, 300, 100]).astype(np.uint16),
    "flat": np.full((60, 64, 3), 32000, np.uint16),
}


def seam(restorer: Restorer, scene: str, path: Path, most: float = 1.0) -> float:
    """How much larger the error against the whole image steps at the windows' borders than elsewhere, in 8-bit levels.

    The error itself is at most `most` levels on average. The borders lie in the middle, behind 60 rows and 64 columns.
    """
    scan = Scan(SCENES[scene])
    error = (in_pieces(restorer, scan, path) - whole(restorer, scan)) / 257
    assert np.abs(error).mean() <= most
    excess = []
    for axis, border in ((0, 60), (1, 64)):
        steps = np.sqrt(np.square(np.diff(error, axis=axis)).mean(axis=(1 - axis, 2)))
        inner = steps[3::4][4:-4]  # the denoiser's patches are four pixels wide, and its results step there
        excess.append(steps[border - 1] - np.delete(inner, border // 4 - 5).max())
    return max(excess)


class TestSeams:
    @pytest.mark.parametrize("scene", SCENES)
    def test_none_without_attention(self, restorer: Restorer, tmp_path: Path, scene: str) -> None:
        assert seam(restorer, scene, tmp_path / "a.png") < 0.05

    @pytest.mark.parametrize("scene", SCENES)
    def test_attention_is_faded(self, attentive: Restorer, tmp_path: Path, scene: str) -> None:
        assert seam(attentive, scene, tmp_path / "a.png") < 0.05

    def test_windows_with_their_own_statistics_have_one(
        self, restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def settle(self: object, norms: pieces.PooledNorms, *others: object, **settings: int) -> None:
            norms.mode = "estimate"

        monkeypatch.setattr(pieces._Restoration, "_settle", settle)
        assert seam(restorer, "photograph", tmp_path / "a.png", most=100) > 0.5


def test_progress_counts_every_window_tile_and_row(restorer: Restorer, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    restore_file(
        restorer, Scan(SCENES["photograph"]), tmp_path / "a.png", window=smallest_window(restorer),
        progress=lambda stage, done, of: seen.setdefault(stage, []).append((done, of)),
    )  # fmt: skip
    assert tuple(seen) == STAGES
    for told in seen.values():
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert told[0][0] == 0
        assert told[-1][0] == told[-1][1] == max(of for _, of in told)
    # 2 x 2 windows of two networks, and 3 x 3 tiles of 32 that share 8 over 60 x 64; the rest measures windows
    measured = [seen[stage][-1][1] - 4 for stage in ("encode", "decode")]
    assert all(passes in range(4, 4 * most + 1, 4) for passes, most in zip(measured, (9, 13), strict=True))
    assert seen["tiles"][-1] == (9, 9)
    assert seen["write"][-1] == (120, 120)


@pytest.mark.parametrize("last", ["encode", "decode", "write"])
def test_an_interruption_leaves_nothing(restorer: Restorer, tmp_path: Path, last: str) -> None:
    def stop(stage: str, done: int, of: int) -> None:
        if (stage, done) == (last, of):  # in the last two rows were written already
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_file(restorer, Scan(SCENES["photograph"]), tmp_path / "a.png", window=52, progress=stop)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_done_is_refused_before_the_work(restorer: Restorer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sides of 8 or more"):
        restore_file(restorer, Scan(np.zeros((7, 20, 3), np.uint8)), tmp_path / "a.png", window=52)
    with pytest.raises(UserError, match="expected 52 or more"):
        restore_file(restorer, Scan(SCENES["flat"]), tmp_path / "a.png", window=40)
    with pytest.raises(ImageError, match="whose sides end at 16383"):
        restore_file(restorer, Scan(np.zeros((8, 8200, 3), np.uint8)), tmp_path / "a.webp", window=52)
    assert os.listdir(tmp_path) == []


class TestPlan:
    """Free memory is set, not found, so that nothing depends on the machine."""

    @pytest.fixture(autouse=True)
    def _free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tsd.restore.memory._free_bytes", lambda: 1_000_000_000)
        monkeypatch.setattr("tsd.restore.memory._resident_bytes", lambda: 500_000_000)

    def test_small_images_in_one_piece_and_large_ones_in_pieces_that_fit(self, restorer: Restorer) -> None:
        assert plan(restorer, 300, 300, Path("a.png")).window is None
        assert plan(restorer, 4000, 3000, Path("a.png"), 100.0).window is None
        large = plan(restorer, 4000, 3000, Path("a.png"))
        assert large.needed_bytes > large.available_bytes == 700_000_000
        assert large.window is not None
        assert large.window >= smallest_window(restorer)
        tight = plan(restorer, 4000, 3000, Path("a.png"), 0.9)
        assert tight.window is not None
        assert tight.window < large.window

    def test_nothing_is_cut_without_tiles(self, restorer: Restorer) -> None:
        assert plan(configured(restorer, tile=0), 4000, 3000, Path("a.png")).window is None

    def test_what_does_not_fit_is_refused(self, restorer: Restorer) -> None:
        with pytest.raises(UserError, match=r"smallest pieces takes about .* and 1.0 MB may be used"):
            plan(restorer, 4000, 3000, Path("a.png"), 0.651)
        with pytest.raises(ImageError, match=r"held whole to be written as JPEG.* use PNG or TIFF"):
            plan(restorer, 6000, 4000, Path("a.jpg"))

    def test_memory_given_counts_what_the_process_holds_and_will_hold(self) -> None:
        cpu = torch.device("cpu")
        assert available_bytes(cpu) == 700_000_000
        assert available_bytes(cpu, 0.8) == pytest.approx(150_000_000)
        assert available_bytes(cpu, 0.01) == 0


def test_the_system_says_what_is_free() -> None:
    assert 10**6 < available_bytes(torch.device("cpu")) < 2**50
