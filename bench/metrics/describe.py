"""Describes one metric in full, for `bench list METRIC`."""

from collections.abc import Iterator

from bench.metrics.base import MetricSpec, missing_metric
from bench.metrics.weights import MetricFile
from bench.store.missing import brief
from tsd.files import human_size


def description(spec: MetricSpec) -> str:
    """Direction, protocol, and every weight file with its state, size, licence, place, addresses and hash.

    Only looks at file names.
    """
    lines = [f"{spec.name}: {spec.display}", ""]
    for title, texts in _facts(spec):
        for number, text in enumerate(texts):
            lines.append(f"  {'' if number else title:<10} {text}")
    return "\n".join(lines)


def _facts(spec: MetricSpec) -> Iterator[tuple[str, list[str]]]:
    yield "direction", ["higher is better" if spec.higher_is_better else "lower is better"]
    compared = "the input" if spec.needs_input else "a ground truth" if spec.needs_reference else ""
    yield "reference", [f"compares with {compared}" if compared else "needs no ground truth"]
    yield "value", ["one for the whole set" if spec.level == "set" else "one for each image; tables show their mean"]
    yield "protocol", [spec.protocol]
    if spec.min_sides != (1, 1):
        short, long = spec.min_sides
        yield "smallest", [f"{short} pixels on the short side, {long} on the long one"]
    yield "weights", [line for file in spec.weights for line in _weight(file)] or ["none"]
    yield "here", brief(missing_metric(spec)) or ["can be measured"]


def _weight(file: MetricFile) -> list[str]:
    """A file in lines: name and state, place, addresses, hash."""
    state = "here" if file.path().is_file() else "missing"
    digest = file.sha256 if len(file.sha256) == 64 else f"{file.sha256}… (no more of it is published)"
    return [
        f"{file.name}: {state}; {human_size(file.size_bytes) or 'size not published'}; {file.licence}",
        f"  at     {file.where}",
        *(f"  {'or' if number else 'from':<6} {url}" for number, url in enumerate(file.urls)),
        f"  sha256 {digest}",
    ]
