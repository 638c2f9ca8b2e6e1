"""Rendered random strings: the images of the text domain, with every glyph's identity and place.

A line is two to five glyphs of 50 in one of 14 faces, turned by up to 5 degrees, in two grays. The faces are files that
matplotlib ships (DejaVu: Bitstream Vera licence; STIX: SIL OFL 1.1; Computer Modern by BaKoMa: its own free licence),
read from matplotlib's own folder. Nothing is stored: a line is a pure function of its seed.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tsd.errors import UserError
from tsd.files import sha256_file
from tsd.seeds import seed_for

HEIGHT, WIDTH = 32, 48
"""Size of a line's image in pixels."""

ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghijkmnopqrty23456789"
"""50 characters; of those that look alike at unknown size (O and o, V and v, 1 and l, …) only one is kept."""

FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
SIZES = range(17, 23)
"""Heights of the faces' em squares in pixels."""

MAX_GLYPHS = 5
MAX_TURN_DEGREES = 5.0
MIN_CONTRAST = 0.45
_SUPERSAMPLING = 4


@dataclass(frozen=True, eq=False)
class Line:
    """A rendered line.

    Attributes:
        image: (HEIGHT, WIDTH) float32 in [0, 1], gray.
        glyphs: index into `ALPHABET` of every glyph, left to right.
        centres: (x, y) of every glyph's ink in pixels.
        face: index into `FACES`.
    """

    image: np.ndarray
    glyphs: tuple[int, ...]
    centres: tuple[tuple[float, float], ...]
    face: int

    @property
    def text(self) -> str:
        return "".join(ALPHABET[glyph] for glyph in self.glyphs)


def font_folder() -> Path:
    """matplotlib's folder of TrueType files.

    Raises:
        UserError: matplotlib is not installed, or ships other faces.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the text domain renders matplotlib's fonts: pip install 'tsd-sr-bench[bench]'") from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [face for face in FACES if not (folder / f"{face}.ttf").is_file()]
    if missing:
        raise UserError(f"matplotlib's fonts in {folder} lack {', '.join(missing)}; install matplotlib from PyPI")
    return folder


def font_hashes() -> dict[str, str]:
    """The sha256 of every face's file: another version of a font renders other images."""
    folder = font_folder()
    return {face: sha256_file(folder / f"{face}.ttf") for face in FACES}


@cache
def _font(face: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_folder() / f"{FACES[face]}.ttf", size * _SUPERSAMPLING)


def render_line(*seed: int | str) -> Line:
    """The line of a seed: its string, face, size, place, turn and grays."""
    random = np.random.default_rng(seed_for(*seed))
    face, size = int(random.integers(len(FACES))), int(random.choice(SIZES))
    font = _font(face, size)
    wanted = int(random.integers(2, MAX_GLYPHS + 1))
    glyphs = [int(glyph) for glyph in random.integers(len(ALPHABET), size=wanted)]
    room = (WIDTH - 3) * _SUPERSAMPLING
    while len(glyphs) > 1 and sum(font.getlength(ALPHABET[glyph]) for glyph in glyphs) > room:
        glyphs.pop()
    width, height = WIDTH * _SUPERSAMPLING, HEIGHT * _SUPERSAMPLING
    length = sum(font.getlength(ALPHABET[glyph]) for glyph in glyphs)
    spare = max(room - length, 0.0)
    left = (width - length) / 2 + (random.random() - 0.5) * spare
    # The baseline leaves room for a capital above and a descender below, and moves by two pixels.
    baseline = height * 0.68 + (random.random() - 0.5) * 4 * _SUPERSAMPLING
    mask, pen = Image.new("L", (width, height)), left
    draw, inks = ImageDraw.Draw(mask), []
    for glyph in glyphs:
        box = font.getbbox(ALPHABET[glyph], anchor="ls")
        inks.append((pen + (box[0] + box[2]) / 2, baseline + (box[1] + box[3]) / 2))
        draw.text((pen, baseline), ALPHABET[glyph], fill=255, font=font, anchor="ls")
        pen += font.getlength(ALPHABET[glyph])
    degrees = float(random.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES))
    mask = mask.rotate(degrees, Image.Resampling.BICUBIC).reduce(_SUPERSAMPLING)
    angle = np.deg2rad(degrees)
    cos, sin, middle_x, middle_y = np.cos(angle), np.sin(angle), width / 2, height / 2
    centres = tuple(
        (
            float(middle_x + cos * (x - middle_x) + sin * (y - middle_y)) / _SUPERSAMPLING,
            float(middle_y - sin * (x - middle_x) + cos * (y - middle_y)) / _SUPERSAMPLING,
        )
        for x, y in inks
    )
    paper, ink = _grays(random)
    coverage = np.asarray(mask, np.float32) / 255
    return Line(paper + (ink - paper) * coverage, tuple(glyphs), centres, face)


def _grays(random: np.random.Generator) -> tuple[np.float32, np.float32]:
    """Gray of the paper and of the ink in [0, 1], at least `MIN_CONTRAST` apart, either of them the darker."""
    contrast = random.uniform(MIN_CONTRAST, 1.0)
    dark = random.uniform(0.0, 1.0 - contrast)
    low, high = np.float32(dark), np.float32(dark + contrast)
    return (low, high) if random.random() < 0.4 else (high, low)
