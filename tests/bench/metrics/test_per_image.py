"""The per-image metrics: protocol, direction, second opinions, and what happens without weights or with wrong ones."""

import json
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.metrics import structural_similarity

from bench import cli
from bench.metrics import (
    METRICS,
    CannotScoreError,
    MetricSpec,
    MissingWeightsError,
    get_metric,
    missing_metric,
    weight_hashes,
)
from bench.metrics.images import UnusableImageError, plain_copy, read_rgb8
from bench.metrics.per_image import rounded_luma, untrained_timm
from bench.metrics.quiet import guarded_pyiqa
from bench.metrics.weights import ALEXNET, LPIPS_HEADS, MUSIQ, hub_dir
from bench.provenance import cached_sha256
from bench.records.records import Records
from tsd.errors import UserError

RUNNABLE_WITHOUT_WEIGHTS = ("psnr", "ssim", "niqe")


def photo(size: int = 256) -> np.ndarray:
    return data.astronaut()[:size, :size].copy()


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma in 16..235 of 0..255 RGB, unrounded, float64."""
    return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $TORCH_HOME."""
    home = tmp_path / "torch_home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home


def unwrapped(spec: MetricSpec, **weights_sha256: str) -> MetricSpec:
    """`spec` with other hashes, by file name up to the first dot or dash: stand-ins are not the published files."""
    files = tuple(
        replace(file, sha256=weights_sha256.get(file.name.split("-")[0].split(".")[0], file.sha256))
        for file in spec.weights
    )
    return replace(spec, weights=files)


def test_the_nine_metrics_of_the_paper_in_its_order() -> None:
    assert list(METRICS) == ["psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa", "clipiqa"]
    assert [spec.display for spec in METRICS.values()] == [
        "PSNR", "SSIM", "LPIPS", "DISTS", "FID", "NIQE", "MUSIQ", "MANIQA", "CLIPIQA",
    ]  # fmt: skip
    assert {name for name, spec in METRICS.items() if spec.higher_is_better} == {
        "psnr", "ssim", "musiq", "maniqa", "clipiqa",
    }  # fmt: skip
    assert {name for name, spec in METRICS.items() if spec.needs_reference} == {"psnr", "ssim", "lpips", "dists", "fid"}
    assert METRICS["maniqa"].pyiqa_name == "maniqa-pipal"


def test_directions_agree_with_pyiqa() -> None:
    with guarded_pyiqa():
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    for spec in METRICS.values():
        assert spec.higher_is_better == (not DEFAULT_CONFIGS[spec.pyiqa_name].get("lower_better", False)), spec.name


def test_protocol_names_the_call_and_the_version() -> None:
    from importlib.metadata import version

    protocol = METRICS["psnr"].protocol
    assert protocol.startswith(f"pyiqa {version('pyiqa')} psnr(test_y_channel=True, color_space='ycbcr')")
    assert "\n" not in "".join(spec.protocol for spec in METRICS.values())


def test_unknown_metric_suggests_and_lists() -> None:
    with pytest.raises(UserError, match=r"Did you mean lpips\? Known: psnr, .*clipiqa, kid"):
        get_metric("lpisp")
    assert get_metric("kid").display == "KID"


def test_specs_and_missing_files_cost_neither_torch_nor_pyiqa(torch_home: Path) -> None:
    program = (
        "import sys, time, json; from bench.metrics import METRICS, missing_metric; t = time.perf_counter();"
        "names = {n: [m.name for m in missing_metric(s)] for n, s in METRICS.items()};"
        "print(json.dumps([time.perf_counter() - t, names, sorted({'torch', 'pyiqa', 'requests'} & set(sys.modules))]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, names, heavy = json.loads(result.stdout)
    assert heavy == []
    assert seconds < 0.5
    assert names["psnr"] == names["ssim"] == []
    assert names["lpips"] == ["alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth"]
    assert names["fid"] == ["pt_inception-2015-12-05-6726825d.pth"]


def test_hub_dir_is_torchs(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(hub_dir()) == torch.hub.get_dir()
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(torch_home / "cache"))
    assert str(hub_dir()) == torch.hub.get_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(hub_dir()) == torch.hub.get_dir()


@pytest.mark.parametrize("name", [name for name in METRICS if name not in RUNNABLE_WITHOUT_WEIGHTS])
def test_without_weights_the_file_is_named_and_pyiqa_is_not_asked(name: str, torch_home: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(MissingWeightsError) as caught:
        METRICS[name].load("cpu")
    assert time.perf_counter() - start < 2
    assert [item.name for item in caught.value.missing] == [file.name for file in METRICS[name].weights]
    message = str(caught.value)
    assert f"`bench fetch {name}`" in message
    assert "$TORCH_HOME/hub/" in message
    assert not torch_home.exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(METRICS["psnr"], modules=(("no_such_package", "pip install it"),))
    (missing,) = missing_metric(spec)
    assert missing.line() == "PSNR needs the Python package no_such_package at this environment: from `pip install it`"


def test_published_hashes_agree_with_the_names_of_the_files() -> None:
    """torchvision and pyiqa put the first digits of the hash into the file name."""
    checked = 0
    for spec in METRICS.values():
        for file in spec.weights:
            prefix = Path(file.name).stem.rpartition("-")[2]
            if len(prefix) == 8 and not prefix.isdigit():
                assert file.sha256.startswith(prefix), file.name
                checked += 1
    assert checked == 7


def test_urls_are_those_of_the_installed_pyiqa() -> None:
    with guarded_pyiqa():
        from pyiqa.archs import clip_model, dists_arch, inception, lpips_arch, maniqa_arch, musiq_arch
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    expected = {
        "lpips": [AlexNet_Weights.IMAGENET1K_V1.url, lpips_arch.default_model_urls["0.1_alex"]],
        "dists": [VGG16_Weights.IMAGENET1K_V1.url, dists_arch.default_model_urls["url"]],
        "fid": [inception.FID_WEIGHTS_URL],
        "musiq": [musiq_arch.default_model_urls["koniq10k"]],
        "maniqa": [maniqa_arch.default_model_urls["pipal"]],
        "clipiqa": [clip_model._MODELS["RN50"]],
    }
    for name, urls in expected.items():
        assert [file.urls[0] for file in METRICS[name].weights] == urls


def test_a_file_with_another_hash_is_refused_before_it_is_opened(torch_home: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (torch_home / "executed",))

    path = torch_home / "hub" / "pyiqa" / MUSIQ.name
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=rf"{MUSIQ.name} has sha256 [0-9a-f]{{64}}, expected e95806b9"):
        METRICS["musiq"].load("cpu")
    assert not (torch_home / "executed").exists()


def test_even_a_file_with_the_right_hash_cannot_run_code(torch_home: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (torch_home / "executed",))

    path = torch_home / "hub" / "pyiqa" / MUSIQ.name
    path.parent.mkdir(parents=True)
    torch.save({"params": Bomb()}, path)
    with pytest.raises(UserError, match="holds more than tensors"):
        unwrapped(METRICS["musiq"], musiq_koniq_ckpt=cached_sha256(path)).load("cpu")
    assert not (torch_home / "executed").exists()


def test_pyiqa_cannot_download_through_the_guard(torch_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with guarded_pyiqa():
        import pyiqa

        for name in ("brisque", "niqe", "lpips"):
            with pytest.raises(UserError, match="wants to download https"):
                pyiqa.create_metric(name, device="cpu")
    assert capsys.readouterr().out == ""
    assert list(torch_home.rglob("*.p*")) == []


def test_the_guard_leaves_nothing_behind(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import pyiqa.utils.download_util as pyiqa_download

    before = (torch.hub.download_url_to_file, pyiqa_download.DEFAULT_CACHE_DIR)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with guarded_pyiqa():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        assert str(torch_home) in pyiqa_download.DEFAULT_CACHE_DIR
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"
    assert (torch.hub.download_url_to_file, pyiqa_download.DEFAULT_CACHE_DIR) == before


def test_psnr_is_the_closed_form_on_unrounded_luma(tmp_path: Path) -> None:
    clean, bad = photo(), noisy(photo(), 8)
    score = METRICS["psnr"].load("cpu")
    mse = np.mean((luma(clean) / 255 - luma(bad) / 255) ** 2)
    expected = 10 * np.log10(1 / (mse + 1e-8))
    assert score(save(tmp_path / "b.png", bad), save(tmp_path / "a.png", clean)) == pytest.approx(expected, abs=1e-4)


def test_ssim_agrees_with_scikit_image(tmp_path: Path) -> None:
    """Also that computing it in strips does not change it: sides that are no multiple of a strip."""
    clean, bad = photo(256)[:201, :173], noisy(photo(256), 12)[:201, :173]
    value = METRICS["ssim"].load("cpu")(save(tmp_path / "b.png", bad), save(tmp_path / "a.png", clean))
    _, full = structural_similarity(
        luma(clean).round(),
        luma(bad).round(),
        gaussian_weights=True,
        sigma=1.5,
        truncate=3.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    assert value == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)


def test_ssim_in_strips_is_pyiqas_ssim(tmp_path: Path) -> None:
    with guarded_pyiqa():
        import pyiqa

        whole = pyiqa.create_metric("ssim", device="cpu", test_y_channel=True, color_space="ycbcr")
    a, b = save(tmp_path / "a.png", photo(130)), save(tmp_path / "b.png", noisy(photo(130), 20))
    assert METRICS["ssim"].load("cpu")(b, a) == pytest.approx(float(whole(str(b), str(a))), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "at_equality"),
    [("psnr", 80.0), ("ssim", 1.0), ("ms-ssim", 1.0), ("gmsd", 0.0), ("fsim", 1.0), ("vif", 1.0)],
)
def test_full_reference_metrics_worsen_with_noise_and_peak_at_equality(
    name: str, at_equality: float, tmp_path: Path
) -> None:
    spec = get_metric(name)
    score = spec.load("cpu")
    clean = save(tmp_path / "clean.png", photo())
    values = [score(save(tmp_path / f"{sigma}.png", noisy(photo(), sigma)), clean) for sigma in (0, 2, 8, 32)]
    assert values == sorted(values, reverse=spec.higher_is_better)
    assert values[0] == pytest.approx(at_equality, abs=1e-4)


@pytest.mark.parametrize("name", ["ms-ssim", "gmsd", "fsim", "vif"])
def test_the_smallest_size_of_a_metric_is_large_enough(name: str, tmp_path: Path) -> None:
    spec = get_metric(name)
    clean = save(tmp_path / "clean.png", photo(spec.min_sides[0]))
    bad = save(tmp_path / "bad.png", noisy(photo(spec.min_sides[0]), 9))
    assert 0 < spec.load("cpu")(bad, clean) < 1


@pytest.mark.parametrize("name", RUNNABLE_WITHOUT_WEIGHTS)
def test_a_value_depends_on_its_image_alone(name: str, tmp_path: Path) -> None:
    clean = save(tmp_path / "clean.png", photo())
    bad = [save(tmp_path / f"{sigma}.png", noisy(photo(), sigma)) for sigma in (3, 9, 27)]
    score, again = METRICS[name].load("cpu"), METRICS[name].load("cpu")
    assert [score(path, clean) for path in bad] == [again(path, clean) for path in reversed(bad)][::-1]


def test_niqe_prefers_the_photograph(torch_home: Path, tmp_path: Path) -> None:
    score = METRICS["niqe"].load("cpu")
    sharp = score(save(tmp_path / "sharp.png", photo(384)), None)
    small = Image.fromarray(photo(384)).resize((96, 96), Image.Resampling.BICUBIC)
    blurred = score(save(tmp_path / "blur.png", np.array(small.resize((384, 384), Image.Resampling.BICUBIC))), None)
    grainy = score(save(tmp_path / "noise.png", noisy(photo(384), 40)), None)
    assert sharp < blurred
    assert sharp < grainy


def test_luma_halfway_between_two_levels_is_rounded_as_a_fused_multiply_add_does() -> None:
    """All colours of which 0.299 R + 0.587 G + 0.114 B ends in .5; processors differ in them and in no other."""
    r, g, b = np.meshgrid(*[np.arange(256)] * 3, indexing="ij")
    thousandths = 299 * r + 587 * g + 114 * b
    halfway = thousandths % 1000 == 500
    colours = np.stack([r, g, b], -1)[halfway]
    scaled = colours.astype(np.float32) / np.float32(255)
    luma = np.zeros(len(colours), np.float32)
    for channel, weight in enumerate(np.array([0.299, 0.587, 0.114], np.float32)):
        luma = (luma.astype(np.longdouble) + scaled[:, channel].astype(np.longdouble) * weight).astype(np.float32)
    levels = rounded_luma(torch.from_numpy(scaled.T.copy())[None, :, None]).squeeze().numpy() * 255
    np.testing.assert_array_equal(levels.round(), (luma * np.float32(255)).round())
    up = levels.round() - thousandths[halfway] // 1000
    assert set(up) == {0, 1}

    others = np.stack([r, g, b], -1)[~halfway][::997]
    scaled = torch.from_numpy(others.T.astype(np.float32))[None, :, None] / 255
    np.testing.assert_array_equal(
        (rounded_luma(scaled).squeeze().numpy() * 255).round(), (thousandths[~halfway][::997] + 500) // 1000
    )


def test_niqe_is_pyiqas_where_no_pixel_is_halfway(torch_home: Path, tmp_path: Path, shared_dir: Path) -> None:
    image = photo(256)
    while (halfway := (image.astype(int) @ (299, 587, 114)) % 1000 == 500).any():
        image[halfway, 0] ^= 1
    path = save(tmp_path / "image.png", image)
    with guarded_pyiqa():
        import pyiqa

        model = shared_dir / "weights" / "pyiqa" / "niqe_modelparameters.mat"
        whole = pyiqa.create_metric("niqe", device="cpu", pretrained_model_path=str(model))
    assert METRICS["niqe"].load("cpu")(path, None) == pytest.approx(float(whole(str(path))), abs=1e-9)


def test_niqe_is_the_recorded_one_on_this_processor_too(tmp_path: Path) -> None:
    """The committed images of bicubic, which have the same bytes everywhere, were scored on another machine."""
    out = tmp_path / "run"
    run = ("run", "--methods", "bicubic", "--metrics", "niqe", "--limit", "4", "--no-figure", "--no-timing")
    assert cli.main([*run, "--out", str(out)]) == 0
    here, recorded = (
        Records(folder).of("mini", "bicubic") for folder in (out, Path(__file__).parents[3] / "reports" / "mini")
    )
    for name, score in here.scores("niqe").items():
        assert score.sr_sha256 == recorded.images()[name].sr_sha256
        assert score.value == pytest.approx(recorded.scores("niqe")[name].value, abs=1e-9)
    assert len(here.scores("niqe")) == 4


@pytest.mark.filterwarnings("ignore:cov")
def test_niqe_says_why_it_cannot_score(torch_home: Path, tmp_path: Path) -> None:
    score = METRICS["niqe"].load("cpu")
    with pytest.raises(CannotScoreError, match=r"NIQE needs images of at least 96x192 pixels; small.png is 150x150"):
        score(save(tmp_path / "small.png", photo(150)), None)
    flat = np.full((256, 256, 3), 90, np.uint8)
    with pytest.raises(CannotScoreError, match=r"NIQE is not defined for flat.png \(flat image\)"):
        score(save(tmp_path / "flat.png", flat), None)


def test_niqes_model_is_the_one_pyiqa_downloads(torch_home: Path, shared_dir: Path) -> None:
    from scipy.io import loadmat

    (file,) = METRICS["niqe"].weights
    assert weight_hashes(METRICS["niqe"]) == {file.name: cached_sha256(file.path())}
    published = loadmat(shared_dir / "weights" / "pyiqa" / "niqe_modelparameters.mat")
    with np.load(file.path()) as shipped:
        np.testing.assert_array_equal(shipped["mu_pris_param"], published["mu_prisparam"])
        np.testing.assert_array_equal(shipped["cov_pris_param"], published["cov_prisparam"])


def test_an_altered_niqe_model_is_refused() -> None:
    altered = unwrapped(METRICS["niqe"], niqe_pris_params="0" * 64)
    with pytest.raises(UserError, match=r"niqe_pris_params\.npz has sha256 2a7c.* install this package again"):
        altered.load("cpu")


def test_ssim_of_a_tiny_image_has_a_reason(tmp_path: Path) -> None:
    tiny = save(tmp_path / "tiny.png", photo(10))
    with pytest.raises(CannotScoreError, match=r"SSIM needs images of at least 11x11 pixels; tiny.png is 10x10"):
        METRICS["ssim"].load("cpu")(tiny, tiny)
    eleven = save(tmp_path / "eleven.png", photo(11))
    assert METRICS["ssim"].load("cpu")(eleven, eleven) == pytest.approx(1)
    assert METRICS["psnr"].load("cpu")(tiny, tiny) == pytest.approx(80, abs=1e-4)


def test_a_reference_is_required_and_must_fit(tmp_path: Path) -> None:
    score = METRICS["psnr"].load("cpu")
    small, large = save(tmp_path / "s.png", photo(32)), save(tmp_path / "l.png", photo(64)[:, :48])
    with pytest.raises(UserError, match=r"l.png is 48x64, .*s.png is 32x32; sizes must agree"):
        score(large, small)
    with pytest.raises(UserError, match="none was given"):
        score(small, None)


def test_images_are_read_as_they_are_or_refused(tmp_path: Path) -> None:
    image = photo(16)
    assert (read_rgb8(save(tmp_path / "rgb.png", image)) == image).all()
    gray = read_rgb8(save(tmp_path / "gray.png", image[..., 0]))
    assert gray.shape == (16, 16, 3)
    assert (gray == image[..., :1]).all()
    for mode in ("RGBA", "LA", "CMYK", "P"):
        Image.fromarray(image).convert(mode).save(path := tmp_path / f"{mode}.tif")
        with pytest.raises(UnusableImageError, match=f"{mode}.tif: "):
            read_rgb8(path)
    save(tmp_path / "deep.png", image[..., 0].astype(np.uint16) * 256)
    with pytest.raises(UnusableImageError, match=r"deep\.png: 16-bit"):
        read_rgb8(tmp_path / "deep.png")


def test_what_pyiqa_would_read_otherwise_is_given_to_it_as_we_read_it(tmp_path: Path) -> None:
    """FID and KID hand paths to pyiqa, which ignores the EXIF orientation."""
    exif, copies = Image.Exif(), tmp_path / "copies"
    exif[0x0112] = 6
    copies.mkdir()
    Image.fromarray(photo(16)[:, :8]).save(tmp_path / "turned.png", exif=exif)
    plain = save(tmp_path / "plain.png", photo(16))
    assert plain_copy(plain, copies) == plain
    copy = plain_copy(tmp_path / "turned.png", copies)
    assert np.array_equal(np.asarray(Image.open(copy)), np.rot90(photo(16)[:, :8], -1))
    assert np.array_equal(read_rgb8(copy), read_rgb8(tmp_path / "turned.png"))


def test_16_bit_rgb_is_refused_although_pillow_reads_it_as_8_bit(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "deep_rgb.png"
    cv2.imwrite(str(path), photo(16).astype(np.uint16) * 257)
    with Image.open(path) as opened:
        assert opened.mode == "RGB"
    with pytest.raises(UnusableImageError, match=r"deep_rgb\.png: 16-bit"):
        read_rgb8(path)


def test_transparent_png_without_an_alpha_band_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trns.png"
    Image.fromarray(photo(16)).save(path, transparency=(0, 0, 0))
    with pytest.raises(UnusableImageError, match="alpha"):
        read_rgb8(path)


@pytest.mark.slow
def test_lpips_from_its_two_files_agrees_with_the_lpips_package(torch_home: Path, tmp_path: Path) -> None:
    """A random AlexNet in place of the published one (244 MB), the published heads, and the original implementation."""
    import lpips
    from torchvision.models import alexnet

    backbone = alexnet()
    alexnet_path = torch_home / "hub" / "checkpoints" / ALEXNET.name
    alexnet_path.parent.mkdir(parents=True)
    torch.save(backbone.state_dict(), alexnet_path)
    heads = torch_home / "hub" / "pyiqa" / LPIPS_HEADS.name
    heads.parent.mkdir()
    shutil.copy(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", heads)

    spec = unwrapped(METRICS["lpips"], alexnet=cached_sha256(alexnet_path))
    score = spec.load("cpu")
    clean, bad = photo(64), noisy(photo(64), 30)
    value = score(save(tmp_path / "b.png", bad), save(tmp_path / "a.png", clean))

    original = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    for index, layer in enumerate(backbone.features):
        for part in (original.net.slice1, original.net.slice2, original.net.slice3, original.net.slice4,
                     original.net.slice5):  # fmt: skip
            if str(index) in dict(part.named_children()):
                part.get_submodule(str(index)).load_state_dict(layer.state_dict())
    tensors = [torch.from_numpy(i).permute(2, 0, 1)[None] / 127.5 - 1 for i in (bad, clean)]
    with torch.no_grad():
        assert value == pytest.approx(float(original(*tensors)), rel=1e-4)
    assert value > score(tmp_path / "a.png", tmp_path / "a.png") == 0
    alexnet_path.unlink()


@pytest.mark.slow
def test_musiq_loads_a_file_of_its_structure(torch_home: Path, tmp_path: Path) -> None:
    """Random weights in place of the published ones: the scores mean nothing, the path is the real one."""
    with guarded_pyiqa():
        from pyiqa.archs.musiq_arch import MUSIQ as Network
    path = torch_home / "hub" / "pyiqa" / MUSIQ.name
    path.parent.mkdir(parents=True)
    torch.save(Network(pretrained=False).state_dict(), path)
    spec = unwrapped(METRICS["musiq"], musiq_koniq_ckpt=cached_sha256(path))
    first, second = save(tmp_path / "a.png", photo(64)), save(tmp_path / "b.png", noisy(photo(64), 30))
    score = spec.load("cpu")
    values = [score(first, None), score(second, None)]
    assert [score(second, None), score(first, None)] == values[::-1]
    assert values[0] != values[1]
    path.unlink()


def test_maniqas_backbone_is_built_without_its_own_weights() -> None:
    """pyiqa asks timm for ImageNet weights that MANIQA's file then replaces; offline that request would fail."""
    import timm

    create = timm.create_model
    with untrained_timm():
        network = timm.create_model("vit_tiny_patch16_224", pretrained=True, depth=1)
    assert isinstance(network, torch.nn.Module)
    assert timm.create_model is create
