"""Checks, clause by clause on synthetic images, that a method keeps the contract of bench/methods/base.py.

A method that breaks a clause gives numbers that depend on the order of images, on what ran before, or on who runs it,
so its tables cannot be reproduced. The images are small and made here, so a check needs no data and takes about a dozen
calls of the method.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bench.methods.base import FolderMethod, Method
from bench.methods.global_random import preserved_random_states, random_states
from bench.options import MIN_SIDE, SCALE, SEED_LIMIT
from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.testsets.manifest import TestSet

SIZES = ((MIN_SIDE, MIN_SIDE), (33, 47), (64, 40))
RANGE_TOLERANCE = 1e-6
# A GPU may sum in another order in every call; a PNG would show one 8-bit level of that at most.
GPU_TOLERANCE = 1 / 255
MIN_CORRELATION = 0.5


@dataclass(frozen=True)
class Finding:
    """The result of checking one clause of the contract.

    Attributes:
        clause: its name.
        passed: False if the contract is broken; None for a fact that is worth knowing and breaks nothing.
        expected, found: in words.
    """

    clause: str
    passed: bool | None
    expected: str
    found: str

    def line(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "note"}[self.passed]
        tail = f" (expected: {self.expected})" if self.passed is False else ""
        return f"{mark}  {self.clause:<30}{self.found}{tail}"


def synthetic_image(height: int, width: int, seed: int = 0) -> Tensor:
    """A small photograph-like image: gradients of different direction per channel, an edge, a disc, fine texture.

    Returns:
        (1, 3, height, width) float32 in [0, 1] with 8-bit values, red and blue running against each other, so that
        swapped channels, a transposed or a mirrored image do not go unnoticed.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    y, x = (y + 0.5) / height, (x + 0.5) / width
    red = 0.15 + 0.6 * x
    green = 0.2 + 0.5 * y
    blue = 0.85 - 0.6 * x
    image = np.stack([red, green, blue])
    image[:, (x - 0.3) ** 2 + (y - 0.35) ** 2 < 0.04] = np.array([[0.9], [0.75], [0.1]])
    image[:, (x > 0.7) & (y > 0.6)] *= 0.4
    image += 0.04 * rng.standard_normal((1, height, width))
    levels = np.round(image.clip(0, 1) * 255)
    return torch.from_numpy(levels / 255)[None].float()


def check_method(
    method: Method, *, device: str = "cpu", progress: Callable[[], object] = lambda: None
) -> list[Finding]:
    """Checks every clause on a method that restores images; a clause fails if the method raises an exception.

    Args:
        device: where the method runs; on a GPU repeated calls may differ by one 8-bit level.
        progress: called after every clause.

    Raises:
        UserError: the method cannot be built here (weights, device), so the contract was not checked.
    """
    tolerance = 0.0 if device == "cpu" else GPU_TOLERANCE
    clauses: list[tuple[str, Callable[[], Finding]]] = [
        *((_size_clause(size), lambda size=size: _check_size(method, size)) for size in SIZES),
        ("flat images", lambda: _check_flat(method)),
        ("content", lambda: _check_content(method)),
        ("determinism", lambda: _check_determinism(method, tolerance)),
        ("seed", lambda: _note_seed(method)),
        ("largest seed", lambda: _check_largest_seed(method)),
        ("independence of other images", lambda: _check_independence(method, tolerance)),
        ("global random state", lambda: _check_random_state(method, tolerance)),
        ("input unchanged", lambda: _check_input_unchanged(method)),
        ("earlier results unchanged", lambda: _check_results_unchanged(method)),
        ("provenance", lambda: _check_provenance(method)),
    ]
    with preserved_random_states():
        return _run(clauses, progress, UserError)


def check_folder(
    method: FolderMethod, testset: "TestSet", progress: Callable[[], object] = lambda: None
) -> list[Finding]:
    """Checks published outputs: every image of the test set is there by name and size, and the provenance."""

    def outputs() -> Finding:
        found = method.outputs(testset)
        names = {image.name for image in testset.images}
        return Finding(
            "outputs",
            set(found) == names and all(path.is_file() for path in found.values()),
            f"one image for each of {len(names)} names",
            f"{len(found)} images for {len(names)} names of {testset.name}",
        )

    return _run([("outputs", outputs), ("provenance", lambda: _check_provenance(method))], progress)


def _run(
    clauses: list[tuple[str, Callable[[], Finding]]], progress: Callable[[], object], *fatal: type[Exception]
) -> list[Finding]:
    findings = []
    for clause, run in clauses:
        try:
            findings.append(run())
        except fatal:
            raise
        except Exception as error:  # a fault of the method is a finding; the check goes on
            findings.append(Finding(clause, False, "no exception", f"{type(error).__name__}: {error}"))
        progress()
    return findings


def _size_clause(size: tuple[int, int]) -> str:
    return f"input of {size[1]}x{size[0]}"


def _check_size(method: Method, size: tuple[int, int]) -> Finding:
    lr = synthetic_image(*size)
    faults = _faults(method.restore(lr.clone(), 0), lr)
    expected = f"float32 CPU tensor (1, 3, {size[0] * SCALE}, {size[1] * SCALE}) in [0, 1], finite, without gradient"
    return Finding(_size_clause(size), not faults, expected, "; ".join(faults) or expected)


def _faults(sr: object, lr: Tensor) -> list[str]:
    """Everything about `sr` that the contract forbids, whatever its content."""
    if not isinstance(sr, Tensor):
        return [f"a {type(sr).__name__}, not a tensor"]
    faults = []
    shape = (1, 3, lr.shape[-2] * SCALE, lr.shape[-1] * SCALE)
    if tuple(sr.shape) != shape:
        faults.append(f"shape {tuple(sr.shape)}")
    if sr.dtype != torch.float32:
        faults.append(f"dtype {str(sr.dtype).removeprefix('torch.')}")
    if sr.device.type != "cpu":
        faults.append(f"on {sr.device}")
    if sr.requires_grad:
        faults.append("carries a gradient")
    values = sr.detach().float()
    not_finite = int((~values.isfinite()).sum())
    if not_finite:
        faults.append(f"{not_finite} values are NaN or infinite")
    elif values.numel() and (values.min() < -RANGE_TOLERANCE or values.max() > 1 + RANGE_TOLERANCE):
        faults.append(f"values from {values.min():.4g} to {values.max():.4g}")
    return faults


def _check_flat(method: Method) -> Finding:
    """Checks an all-black and an all-white image: a method that divides by their deviation divides by zero."""
    faults = []
    for name, level in (("black", 0.0), ("white", 1.0)):
        lr = torch.full((1, 3, MIN_SIDE, MIN_SIDE), level)
        faults += [f"{name}: {fault}" for fault in _faults(method.restore(lr.clone(), 0), lr)]
    return Finding("flat images", not faults, "finite values in [0, 1]", "; ".join(faults) or "black and white pass")


def _check_content(method: Method) -> Finding:
    """Checks an image and its negative of the same size: one cached result cannot pass for both."""
    image = synthetic_image(64, 40)
    correlations = []
    for lr in (image, 1 - image):
        sr = method.restore(lr.clone(), 0).detach().float()
        small = torch.nn.functional.adaptive_avg_pool2d(sr, (lr.shape[-2], lr.shape[-1]))
        correlations.append(float(torch.corrcoef(torch.stack([small.flatten(), lr.flatten()]))[0, 1]))
    return Finding(
        "content",
        min(correlations) >= MIN_CORRELATION,
        f"the output, averaged down, correlates with the input by {MIN_CORRELATION} or more; less means swapped "
        "channels, a turned image, another range or another image",
        f"correlation with the input {correlations[0]:.3f}, with its negative as input {correlations[1]:.3f}",
    )


def _check_determinism(method: Method, tolerance: float) -> Finding:
    lr = synthetic_image(33, 47)
    first = method.restore(lr.clone(), 1).clone()
    return _compare("determinism", first, method.restore(lr.clone(), 1), tolerance, "the same image and seed, twice")


def _note_seed(method: Method) -> Finding:
    lr = synthetic_image(33, 47)
    difference = _difference(method.restore(lr.clone(), 1).clone(), method.restore(lr.clone(), 2))
    found = "the seed changes nothing" if difference == 0 else f"another seed changes values by up to {difference:.3g}"
    return Finding("seed", None, "either", found)


def _check_largest_seed(method: Method) -> Finding:
    lr = synthetic_image(MIN_SIDE, MIN_SIDE)
    faults = _faults(method.restore(lr.clone(), SEED_LIMIT - 1), lr)
    return Finding("largest seed", not faults, "works like any other", "; ".join(faults) or f"{SEED_LIMIT - 1} works")


def _check_independence(method: Method, tolerance: float) -> Finding:
    """Compares the results for A before and after B, which has another size, content and seed."""
    a, b = synthetic_image(33, 47), 1 - synthetic_image(64, 40, seed=1)
    before = method.restore(a.clone(), 1).clone()
    method.restore(b, 2)
    after = method.restore(a.clone(), 1)
    return _compare("independence of other images", before, after, tolerance, "an image before and after another")


def _check_random_state(method: Method, tolerance: float) -> Finding:
    """Checks that the result does not depend on the global generators and that they are not changed."""
    clause, lr = "global random state", synthetic_image(33, 47)
    results, touched = [], []
    for global_seed in (1, 2):
        random.seed(global_seed)
        np.random.seed(global_seed)
        torch.manual_seed(global_seed)
        before = random_states()
        results.append(method.restore(lr.clone(), 1).clone())
        touched = [name for name, state in random_states().items() if state != before[name]]
    if touched:
        expected = "left as found; draw from a torch.Generator (or numpy Generator) made from the seed"
        return Finding(clause, False, expected, f"the call changes the global state of {', '.join(touched)}")
    return _compare(clause, results[0], results[1], tolerance, "the same image under two global seeds")


def _check_input_unchanged(method: Method) -> Finding:
    lr = synthetic_image(33, 47)
    given = lr.clone()
    method.restore(given, 1)
    unchanged = given.shape == lr.shape and torch.equal(given, lr)
    return Finding("input unchanged", unchanged, "not modified", "unchanged" if unchanged else "the call modified it")


def _check_results_unchanged(method: Method) -> Finding:
    lr = synthetic_image(33, 47)
    first = method.restore(lr, 1)
    kept = first.clone()
    method.restore(1 - lr, 1)
    unchanged = _difference(first, kept) == 0
    found = "unchanged" if unchanged else "a later call overwrote the tensor returned before"
    return Finding("earlier results unchanged", unchanged, "a tensor of its own for every call", found)


def _check_provenance(method: Method | FolderMethod) -> Finding:
    facts = method.provenance()
    expected = "a non-empty dict that JSON can hold, the same every time"
    if not isinstance(facts, dict) or not facts:
        return Finding("provenance", False, expected, f"{type(facts).__name__} {facts!r:.60}")
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    if json.dumps(method.provenance(), sort_keys=True) != text:
        return Finding("provenance", False, expected, "two calls differ")
    return Finding("provenance", True, expected, ", ".join(sorted(facts)))


def _compare(clause: str, first: Tensor, second: Tensor, tolerance: float, what: str) -> Finding:
    expected = f"{what}: equal" if tolerance == 0 else f"{what}: within {tolerance:.3g}"
    difference = _difference(first, second)
    found = "equal, bit for bit" if difference == 0 else f"{what}: values differ by up to {difference:.3g}"
    return Finding(clause, difference <= tolerance, expected, found)


def _difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ; NaN in the same place is no difference."""
    if first.shape != second.shape:
        return float("inf")
    gap = (first.detach().double() - second.detach().double()).abs()
    gap[first.isnan() & second.isnan()] = 0
    return float(gap.nan_to_num(nan=float("inf")).max()) if gap.numel() else 0.0


def report(name: str, findings: list[Finding]) -> str:
    """The findings as lines for a terminal, with a verdict first."""
    failed = sum(finding.passed is False for finding in findings)
    verdict = "keeps the contract" if not failed else f"breaks {failed} of {len(findings)} clauses"
    return "\n".join([f"{name} {verdict}", *(f"  {finding.line()}" for finding in findings)])
