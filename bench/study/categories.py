"""Categories of images, from a CSV file with the columns `image` and `category`, and a choice of images of each."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from bench.report.figures import spread
from bench.study.study import ALL
from tsd.errors import UserError, some

COLUMNS = ("image", "category")


def read_categories(path: Path) -> dict[str, str]:
    """The category of each image by its name (stem), in the order of the file.

    Raises:
        UserError: no such file, other columns, an empty cell, or an image in two categories.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--categories {path} could not be read ({error}); expected a CSV file in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise UserError(f"--categories {path}: expected the columns {' and '.join(COLUMNS)}, found {found}")
    categories: dict[str, str] = {}
    for line in reader:
        image, category = line["image"] or "", (line["category"] or "").strip()
        if not image or not category:
            raise UserError(f"--categories {path}, line {reader.line_num}: image and category must both have a value")
        if category == ALL:
            raise UserError(f"--categories {path}: {ALL!r} is the name of all categories together; choose another")
        if categories.setdefault(image, category) != category:
            raise UserError(f"--categories {path}: {image} is in {categories[image]} and in {category}")
    return categories


def choose(names: Sequence[str], categories: dict[str, str] | None, count: int | None) -> dict[str, str]:
    """The images of a study, by name, with their categories; as many of each category, evenly spread.

    Args:
        names: images of the run.
        categories: by image, in the order in which they shall be shown; None for a single one.
        count: how many in all; None for all that have a category.

    Raises:
        UserError: a category of unknown images, or with too few.
    """
    if categories is None:
        categories = dict.fromkeys(names, ALL)
    unknown = [name for name in categories if name not in set(names)]
    if unknown:
        raise UserError(f"--categories names images that the run does not have: {some(unknown)}")
    by_category: dict[str, list[str]] = {}
    for name, category in categories.items():
        by_category.setdefault(category, []).append(name)
    if count is None:
        return categories
    if count < len(by_category):
        raise UserError(f"--images {count}: at least one for each of the {len(by_category)} categories")
    share, more = divmod(count, len(by_category))
    wanted = {category: share + (place < more) for place, category in enumerate(by_category)}
    short = [
        f"{category} has {len(by_category[category])} of {needed}"
        for category, needed in wanted.items()
        if len(by_category[category]) < needed
    ]
    if short:
        raise UserError(f"--images {count}: too few images in a category: {'; '.join(short)}")
    chosen = {category: spread(by_category[category], needed) for category, needed in wanted.items()}
    return {name: category for category, of_category in chosen.items() for name in of_category}
