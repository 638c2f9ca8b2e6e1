"""What the plots of reports share: their style, matplotlib without a screen, and files without dates."""

from pathlib import Path
from typing import Any

from tsd.files import atomic_path

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D00")
"""Okabe and Ito's, which colour-blind readers tell apart."""
PAPER = "#9A9A9A"
"""What the paper printed."""
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "bench",  # ids in an SVG are otherwise random: the same records give the same file
    "svg.fonttype": "none",
}
LITERAL = {"text.parse_math": False}
"""With this, names are text whatever signs they hold; not for logarithmic axes, whose ticks are formulas."""
_DATELESS: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


def pyplot() -> Any:
    """Imports matplotlib, with the backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, stem: Path, endings: tuple[str, ...] = (".png", ".svg"), dpi: int = 150) -> list[Path]:
    """Writes the figure with each ending: .png, .svg or .pdf. The same records give the same bytes."""
    paths = [stem.with_name(f"{stem.name}{ending}") for ending in endings]
    for path, ending in zip(paths, endings, strict=True):
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=dpi, metadata=_DATELESS[ending])
    return paths
