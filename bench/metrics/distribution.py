"""FID and KID: the distance between two sets of images, in the features of pyiqa's Inception network.

The features are those of pyiqa (clean resizing to 299x299, then the 2048 numbers of the last average pooling); this
module has the arithmetic. pyiqa takes the square root of a 2048x2048 matrix by `scipy.linalg.sqrtm`, which takes 103
seconds, leaves an imaginary part to be dropped, and needs an argument that scipy 1.18 removes. For sets of N images
the same trace is

    Tr (S1 S2)^(1/2) = || X1 X2^T ||_* / sqrt((n1 - 1)(n2 - 1)),    S_i = X_i^T X_i / (n_i - 1), X_i centred (n_i, D),

the sum of the singular values of a matrix with N rows: the nonzero eigenvalues of S1 S2 are the squares of those.

FID at N = 100 is mostly bias (two independent sets of one distribution: 173 at N = 100, 23 at N = 3000): values at
different N must never be compared, so N is part of every result. KID has no such bias.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.metrics.base import CannotScoreError, MetricSpec, SetScorer
from bench.metrics.images import plain_copy
from bench.metrics.quiet import guarded_pyiqa
from bench.metrics.weights import INCEPTION
from tsd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 8
INPUT_SIZE = (299, 299)
Distance = Callable[[np.ndarray, np.ndarray], float]


def fid_from_features(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two feature sets (n1, D) and (n2, D), n1 and n2 at least 2."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    mean_difference = first.mean(0) - second.mean(0)
    factors = [covariance_factor(features) for features in (first, second)]
    traces = sum(float((factor**2).sum()) for factor in factors)
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(mean_difference @ mean_difference + traces - 2 * cross)


def covariance_factor(features: np.ndarray) -> np.ndarray:
    """A matrix R of at most D rows with R^T R = the sample covariance (divisor n - 1) of `features` (n, D).

    R is the triangular factor of the centred features, so that the cost is bounded by D if n is larger.
    """
    count = len(features)
    if count < 2:
        raise CannotScoreError(f"FID needs at least 2 images, found {count}")
    return np.linalg.qr(features - features.mean(0), mode="r") / np.sqrt(count - 1)


def kid_from_features(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased squared MMD of two paired feature sets (n, D), n at least 2, with the kernel (x.y / D + 1)^3.

    Row i of both sets belongs to the same image. A restored image is not independent of its ground truth, so the n
    matched pairs are left out of the cross term, as x_i.x_i is left out of the other two terms. All three are then
    averages over n (n - 1) independent pairs, and equal distributions give 0 on average.

    Raises:
        CannotScoreError: fewer than 2 images.
        ValueError: the sets differ in shape.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired sets must have one shape, found {first.shape} and {second.shape}")
    count, dimension = first.shape
    if count < 2:
        raise CannotScoreError(f"KID needs at least 2 images, found {count}")

    def mean_off_diagonal(x: np.ndarray, y: np.ndarray) -> float:
        kernel = (x @ y.T / dimension + 1) ** 3
        return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))

    return mean_off_diagonal(first, first) + mean_off_diagonal(second, second) - 2 * mean_off_diagonal(first, second)


def load_inception(device: str) -> Callable[["Tensor"], "Tensor"]:
    """pyiqa's FID network as a function (B, 3, 299, 299) float32 in 0..255 -> (B, 2048)."""
    with guarded_pyiqa():
        from pyiqa.archs.inception import InceptionV3

        network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).to(device).eval()
    return lambda batch: network((batch.to(device) - 128) / 128, False, False)[0].flatten(1)


def image_features(
    paths: Sequence[Path], network: Callable[["Tensor"], "Tensor"], batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Features (N, D) of image files in the order given, after pyiqa's "clean" resizing (float bicubic of Pillow).

    `network` maps (B, 3, 299, 299) float32 in 0..255 to (B, D).
    """
    with guarded_pyiqa():
        from pyiqa.archs.fid_arch import ResizeDataset
    import torch

    from tsd.console.progress import Progress

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        files = [plain_copy(path, Path(folder)) for path in paths]  # pyiqa opens the files itself
        images = torch.utils.data.DataLoader(
            ResizeDataset(files, mode="clean", size=INPUT_SIZE), batch_size=batch_size, shuffle=False
        )
        batches = [
            network(batch).double().cpu().numpy()
            for batch in Progress(images, "features", unit="batch", leave=False, delay=2)
        ]
    return np.concatenate(batches)


def set_scorer(distance: Distance, network: Callable[["Tensor"], "Tensor"], display: str) -> SetScorer:
    """Makes a function that takes two sets of images with equal names and returns `distance` between their features.

    The function keeps the features of the ground truth between calls, which halves the cost of further methods. It
    raises UserError if the two sets do not have the same names.
    """
    kept: dict[tuple[tuple[Path, int], ...], np.ndarray] = {}

    def score(sr_paths: Mapping[str, Path], hr_paths: Mapping[str, Path]) -> float:
        different = sorted(sr_paths.keys() ^ hr_paths.keys())
        if different:
            raise UserError(f"{display} needs equal names in both sets; without a partner: {', '.join(different)}")
        names = sorted(sr_paths)
        if len(names) < 2:
            raise CannotScoreError(f"{display} needs at least 2 images, found {len(names)}")
        hr = [hr_paths[name] for name in names]
        key = tuple((path, path.stat().st_mtime_ns) for path in hr)
        if key not in kept:
            kept.clear()
            kept[key] = image_features(hr, network)
        return distance(image_features([sr_paths[name] for name in names], network), kept[key])

    return score


def fid_scorer(spec: MetricSpec, device: str) -> SetScorer:
    return set_scorer(fid_from_features, load_inception(device), spec.display)


def kid_scorer(spec: MetricSpec, device: str) -> SetScorer:
    return set_scorer(kid_from_features, load_inception(device), spec.display)


FID = MetricSpec(
    name="fid",
    display="FID",
    needs_reference=True,
    higher_is_better=False,
    level="set",
    pyiqa_name="fid",
    note="Inception features after clean resizing, sets of equal names, exact trace by nuclear norm; depends on N",
    decimals=2,
    loader=fid_scorer,
    weights=(INCEPTION,),
)
KID = MetricSpec(
    name="kid",
    display="KID",
    needs_reference=True,
    higher_is_better=False,
    level="set",
    pyiqa_name="fid",
    note="Inception features after clean resizing, cubic kernel, unbiased, matched pairs left out of the cross term",
    decimals=5,
    loader=kid_scorer,
    weights=(INCEPTION,),
)
