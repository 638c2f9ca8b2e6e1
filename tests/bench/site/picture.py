"""Makes the picture of the page that the documents show: the comparison in light colours. For `nox -s site_picture`."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tsd.files import human_size, write_atomic

VIEW = "#view=compare&mode=side&set=mini&image=rocket-tower&side=bicubic,realesrgan-compact,tsd-sr-mini,truth:"
WAIT = "[...document.querySelectorAll('#panes img')].every((image) => image.complete && image.naturalWidth)"
MOST_BYTES = 250_000


def main(site: Path, out: Path) -> None:
    """Draws the page of `site`, a folder of `bench site reports/mini`, into the WebP file `out`."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        page = browser.new_page(viewport={"width": 1280, "height": 760}, color_scheme="light")
        page.goto((site / "index.html").absolute().as_uri() + VIEW)
        while not page.evaluate(WAIT):
            page.wait_for_timeout(100)
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    buffer = io.BytesIO()
    shot.convert("RGB").save(buffer, "WEBP", quality=80, method=6)
    if buffer.tell() > MOST_BYTES:
        sys.exit(f"{out} would take {human_size(buffer.tell())}, more than {human_size(MOST_BYTES)}")
    write_atomic(out, buffer.getvalue())
    print(f"{out}: {human_size(buffer.tell())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
