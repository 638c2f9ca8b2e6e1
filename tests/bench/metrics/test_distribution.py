"""FID and KID: closed forms, other implementations, and pyiqa's own feature extraction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from bench.metrics import METRICS, CannotScoreError, get_metric
from bench.metrics.distribution import (
    covariance_factor,
    fid_from_features,
    image_features,
    kid_from_features,
    set_scorer,
)
from bench.metrics.quiet import guarded_pyiqa
from bench.metrics.weights import INCEPTION
from bench.provenance import cached_sha256
from tsd.errors import UserError


def gaussian(count: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimension, dimension)) / np.sqrt(dimension)
    return rng.normal(size=(count, dimension)) @ mixing + shift


def fid_by_matrix_square_root(first: np.ndarray, second: np.ndarray) -> float:
    """The definition, written out: the reference implementation's formula."""
    difference = first.mean(0) - second.mean(0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    cross = np.trace(np.real(sqrtm(covariances[0] @ covariances[1])))
    return float(difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross)


@pytest.mark.parametrize(("first", "second"), [(40, 40), (60, 25), (12, 12), (9, 30)])
def test_fid_is_the_trace_of_the_matrix_square_root(first: int, second: int) -> None:
    """More images than dimensions, fewer, and sets of different size; D = 16."""
    a, b = gaussian(first, 16, 1), gaussian(second, 16, 2, shift=0.3)
    # With fewer images than dimensions the product is singular and sqrtm good to the root of machine precision only.
    tolerance = 1e-9 if min(first, second) > 16 else 1e-4
    assert fid_from_features(a, b) == pytest.approx(fid_by_matrix_square_root(a, b), rel=tolerance)


def test_fid_of_gaussians_is_their_frechet_distance() -> None:
    """Diagonal Gaussians: sum of (m1 - m2)^2 + (s1 - s2)^2, on samples standardised to have exactly those moments."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 5))
    centred = samples - samples.mean(0)
    white = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T
    scales = np.array([0.5, 1.0, 1.5, 2.0, 3.0])
    value = fid_from_features(white, white * scales + 2.0)
    assert value == pytest.approx(5 * 2.0**2 + ((scales - 1) ** 2).sum(), rel=1e-10)


def test_fid_of_equal_sets_is_zero_and_grows_with_distance() -> None:
    features = gaussian(50, 64, 3)
    values = [fid_from_features(features, features + shift) for shift in (0.0, 0.1, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values == sorted(values)


def test_fid_does_not_depend_on_the_order_of_images() -> None:
    a, b = gaussian(30, 64, 4), gaussian(30, 64, 5)
    shuffled = np.random.default_rng(0).permutation(30)
    assert fid_from_features(a[shuffled], b) == pytest.approx(fid_from_features(a, b), rel=1e-12)
    assert fid_from_features(b, a) == pytest.approx(fid_from_features(a, b), rel=1e-12)


def test_fid_at_the_size_of_the_paper_takes_a_moment() -> None:
    import time

    a, b = np.random.default_rng(0).normal(size=(2, 100, 2048))
    start = time.perf_counter()
    fid_from_features(a, b)
    assert time.perf_counter() - start < 5


def test_covariance_factor_is_bounded_by_the_dimension() -> None:
    features = gaussian(300, 7, 6)
    factor = covariance_factor(features)
    assert factor.shape == (7, 7)
    np.testing.assert_allclose(factor.T @ factor, np.cov(features, rowvar=False), atol=1e-12)


def test_one_image_is_no_distribution() -> None:
    for distance in (fid_from_features, kid_from_features):
        with pytest.raises(CannotScoreError, match="at least 2 images, found 1"):
            distance(np.zeros((1, 4)), np.zeros((1, 4)))


def test_kid_is_the_mean_over_all_unmatched_pairs() -> None:
    """The kernel of scikit-learn, and the average of h over ordered pairs of images written as a loop."""
    x, y = gaussian(12, 20, 7), gaussian(12, 20, 8, shift=0.2)
    kxx, kyy, kxy = (polynomial_kernel(a, b, degree=3, gamma=1 / 20, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    terms = [kxx[i, j] + kyy[i, j] - kxy[i, j] - kxy[j, i] for i in range(12) for j in range(12) if i != j]
    assert kid_from_features(x, y) == pytest.approx(np.mean(terms), rel=1e-12)


def test_kid_is_unbiased_where_fid_is_not() -> None:
    """Pairs as restoration makes them, y close to its own x, both of one distribution: KID is 0 on average."""
    values, with_matched_pairs, fids = [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        common, own_x, own_y = rng.normal(size=(3, 20, 8))
        x, y = common + 0.3 * own_x, common + 0.3 * own_y
        values.append(kid_from_features(x, y))
        matched = ((x * y).sum(1) / 8 + 1) ** 3
        unmatched = (x @ y.T / 8 + 1) ** 3
        with_matched_pairs.append(values[-1] + 2 * (unmatched.sum() - matched.sum()) / (20 * 19) - 2 * unmatched.mean())
        fids.append(fid_from_features(x, y))
    error = np.std(values) / np.sqrt(200)
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(with_matched_pairs) < -4 * error
    assert np.mean(fids) > 0.3


def test_kid_wants_paired_sets() -> None:
    with pytest.raises(ValueError, match=r"one shape, found \(3, 2\) and \(4, 2\)"):
        kid_from_features(np.zeros((3, 2)), np.zeros((4, 2)))


class TinyNetwork(torch.nn.Module):
    """A random feature network behind the same boundary as Inception: (B, 3, 299, 299) in 0..255 -> (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 9, stride=8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 299, 299)
        return self.layers(images / 255)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Six images of two sizes and their noisy versions, by name."""
    rng = np.random.default_rng(0)
    sr, hr = {}, {}
    for side, noise, found in (("hr", 0, hr), ("sr", 40, sr)):
        (tmp_path / side).mkdir()
        for index in range(6):
            base = np.add.outer(np.arange(40 + index), np.arange(50))[..., None] * np.array([2, 1, 1]) + index * 10
            image = (base + rng.normal(0, noise, base.shape)).clip(0, 255).astype(np.uint8)
            path = tmp_path / side / f"{index}.png"
            Image.fromarray(image).save(path)
            found[f"{index}"] = path
    return sr, hr


def test_set_scorer_pairs_by_name_and_ignores_order(folders: tuple[dict[str, Path], dict[str, Path]]) -> None:
    sr, hr = folders
    for distance in (fid_from_features, kid_from_features):
        score = set_scorer(distance, TinyNetwork(), "FID")
        value = score(sr, hr)
        assert score(dict(reversed(sr.items())), hr) == value
        assert value > score(hr, hr) - 1e-9


def test_features_do_not_depend_on_the_batch(folders: tuple[dict[str, Path], dict[str, Path]]) -> None:
    paths = list(folders[0].values())
    one, four = (image_features(paths, TinyNetwork(), batch_size=size) for size in (1, 4))
    assert one.shape == (6, 16)
    np.testing.assert_allclose(one, four, rtol=1e-5)


def test_features_of_the_ground_truth_are_kept_until_it_changes(
    folders: tuple[dict[str, Path], dict[str, Path]],
) -> None:
    sr, hr = folders
    seen: list[int] = []
    network = TinyNetwork()

    def counting(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return network(images)

    score = set_scorer(fid_from_features, counting, "FID")
    first = score(sr, hr)
    assert sum(seen) == 12
    assert score(sr, hr) == first
    assert sum(seen) == 18
    Image.new("RGB", (40, 50), (255, 0, 0)).save(hr["3"])
    assert score(sr, hr) != first
    assert sum(seen) == 30


def test_unequal_sets_are_refused(folders: tuple[dict[str, Path], dict[str, Path]]) -> None:
    sr, hr = folders
    score = set_scorer(fid_from_features, TinyNetwork(), "FID")
    with pytest.raises(UserError, match="without a partner: 2, 5"):
        score({k: v for k, v in sr.items() if k != "5"}, {k: v for k, v in hr.items() if k != "2"})
    with pytest.raises(CannotScoreError, match="at least 2 images, found 1"):
        score({"1": sr["1"]}, {"1": hr["1"]})


@pytest.mark.slow
def test_fid_from_an_inception_file_has_pyiqas_features(
    folders: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights in place of the published ones (96 MB): the real network, loader and pre-processing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    with guarded_pyiqa():
        from pyiqa.archs import inception
        from pyiqa.archs.fid_arch import get_folder_features
    path = INCEPTION.path()
    path.parent.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", lambda *_: None)
        torch.manual_seed(0)
        torch.save(inception.fid_inception_v3().state_dict(), path)

    sr, hr = ({name: found[name] for name in "012"} for found in folders)
    with guarded_pyiqa():
        model = inception.InceptionV3([3]).eval()
        theirs = [
            get_folder_features(
                str(tmp_path / side), model, num_workers=0, batch_size=6, device=torch.device("cpu"), verbose=False
            )[:3]
            for side in ("sr", "hr")
        ]
    assert theirs[0].shape == (3, 2048)
    fid = replace(METRICS["fid"], weights=(replace(INCEPTION, sha256=cached_sha256(path)),))
    assert fid.load("cpu")(sr, hr) == pytest.approx(fid_from_features(*theirs), rel=1e-3)
    with pytest.raises(UserError, match="expected 6726825d"):
        METRICS["fid"].load("cpu")
    path.unlink()


def test_kid_and_fid_share_files_and_network() -> None:
    fid, kid = METRICS["fid"], get_metric("kid")
    assert kid.weights == fid.weights
    assert kid.name not in METRICS
