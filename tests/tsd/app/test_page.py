"""`tsd app` in a real browser. Skipped where Gradio or a browser is missing; `nox -s tests_app` has Gradio."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page, expect

from tsd.cli import main

pytestmark = pytest.mark.slow
HOSTILE = "'\"&<img src=x onerror=window.hacked=1>${window.hacked=2}{{this}} Ünï.png"
SECONDS = 600
"""How long anything may take: other processes may starve these."""
SETTINGS = ("--posterior", "sample", "--color", "adain")
"""What the page begins with, and the command line is given. With `sample` the seed is made of the file's name."""
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def photograph(seed: int, width: int = 40, height: int = 32) -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([x * 6, y * 7, (x * y) // 5 + 20 * seed], axis=-1) % 256
    noise = np.random.default_rng(seed).integers(0, 30, waves.shape)
    buffer = io.BytesIO()
    Image.fromarray((waves // 2 + 40 + noise).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def uploaded(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": content}


@dataclass
class Served:
    """A running page: its process and address, its student, and the folder that temporary files go to."""

    process: subprocess.Popen[str]
    address: str
    student: Path
    temporary: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of an exported student, started by the program that a Space runs."""
    root = tmp_path_factory.mktemp("app")
    student, folder = root / "student", root / "temporary"
    folder.mkdir()
    assert main(["export", "--out", str(student), "--space"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, student / "app.py", "--port", str(port), "--max-file-size", "1", *SETTINGS],
        stdout=subprocess.PIPE, text=True, cwd=folder, env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("the page is at http://127.0.0.1:"), line
    yield Served(process, line.split()[4], student, folder)
    process.kill()
    process.wait()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page. It asks nobody but its own server for anything, and nothing goes wrong in it."""
    complaints: list[str] = []
    context = browser.new_context(viewport=WIDE, color_scheme="light", accept_downloads=True)
    context.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    page = context.new_page()
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    own = (served.address, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or complaints.append(request.url))
    page.goto(served.address)
    expect(page.get_by_role("button", name="Restore")).to_be_visible()
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    assert complaints == []


def restore(page: Page, *files: dict) -> None:
    """Drops files into the page and waits until all are done."""
    page.locator("input[type=file]").set_input_files(list(files))
    expect(page.get_by_text(files[-1]["name"].rpartition(".")[0]).first).to_be_visible()
    page.get_by_role("button", name="Restore").click()
    expect(page.locator(".tsd-status")).to_contain_text("restored")


def downloaded(page: Page, name: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.get_by_role("link", name=name, exact=True).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_downloads_have_the_bytes_of_the_command_line(page: Page, served: Served, tmp_path: Path) -> None:
    content = {HOSTILE: photograph(1), "b.png": photograph(2), "broken.png": photograph(3)[:900]}
    page.get_by_label("Enlargement").fill("2")
    restore(page, *(uploaded(name, data) for name, data in content.items()))
    (tmp_path / "in").mkdir()
    for name, data in content.items():
        (tmp_path / "in" / name).write_bytes(data)
    out = tmp_path / "out"
    options = ["--model", str(served.student), "--scale", "2", *SETTINGS]
    assert main(["restore", str(tmp_path / "in"), "-o", str(out), *options]) == 1

    name, data = downloaded(page, f"Download {HOSTILE}")
    assert data == (out / HOSTILE).read_bytes()
    assert name.endswith("Ünï.png")
    said = json.loads(Image.open(io.BytesIO(data)).info["tsd-sr-bench"])
    assert said["model"] == "student"
    assert said["name"] == HOSTILE.removesuffix(".png")
    assert said["settings"]["scale"] == 2
    assert said["settings"]["color"] == "adain"
    _, archive = downloaded(page, "Download restored.zip")
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == {
            path.name: path.read_bytes() for path in out.iterdir()
        }
    assert page.locator(".tsd-name").all_inner_texts() == list(content)
    assert "2 of 3 restored, 1 failed" in page.locator(".tsd-status").inner_text()


def test_errors_are_worded_as_the_command_line_words_them(
    page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("alert")).to_have_text("there are no photographs yet: drop some into the field above")
    broken = tmp_path / "no picture.png"
    broken.write_bytes(b"no picture at all")
    assert main(["restore", str(broken), "-o", str(tmp_path / "out")]) == 1
    told = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(f"  {broken}: "))
    restore(page, uploaded(broken.name, broken.read_bytes()))
    assert page.locator(".tsd-results [role=alert]").inner_text() == told.removeprefix(f"  {broken}: ")
    assert str(broken.parent) not in page.content()
    page.get_by_label("Side of tiles").fill("8")
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("alert").first).to_have_text("tile_overlap is 8; expected less than the tile, 8")


def test_a_pixel_is_a_pixel_and_keys_are_enough(page: Page) -> None:
    restore(page, uploaded("a.png", photograph(4)), uploaded("second.png", photograph(5)))
    _, data = downloaded(page, "Download a.png")
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    expect(page.get_by_role("button", name="1:1")).to_have_attribute("aria-pressed", "true")
    line = page.get_by_role("slider", name="Where the input ends")
    line.focus()
    page.keyboard.press("Home")  # the result alone
    pane = page.locator(".tsd-pane")
    for zoom in (1, 4):
        page.get_by_role("button", name=f"{zoom}{':1' if zoom == 1 else '×'}").press("Enter")
        pane.scroll_into_view_if_needed()
        shot = np.asarray(Image.open(io.BytesIO(page.locator(".tsd-after").screenshot())).convert("RGB"))
        middle = shot[zoom // 2 :: zoom, zoom // 2 :: zoom]
        inside = np.s_[8:-8, 8:-8]
        assert np.array_equal(middle[inside], pixels[inside]), zoom
    where = page.locator(".tsd-after").evaluate("image => image.style.transform")
    pane.press("+")
    assert page.locator(".tsd-bar output").inner_text() == "800 %"
    pane.press("ArrowRight")
    assert page.locator(".tsd-after").evaluate("image => image.style.transform") != where
    line.focus()
    page.keyboard.press("End")
    cut = page.locator(".tsd-before").evaluate("image => image.style.clipPath.match(/[0-9.]+/g)")
    assert max(map(float, cut)) < 1  # pixels
    page.get_by_role("button", name="Compare second.png").press("Enter")
    expect(page.get_by_alt_text("second.png, the result")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_within_the_screen(page: Page, scheme: str, tmp_path: Path) -> None:
    """axe-core finds no fault by WCAG 2.2 AA in what is ours; screenshots stay in pytest's folder."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{page.url.partition('?')[0]}?__theme={scheme}")
    restore(page, uploaded("photo.png", photograph(6, 96, 72)), uploaded("other.png", photograph(7)))
    page.get_by_role("button", name="Compare photo.png").click()
    for name, size in (("phone", PHONE), ("wide", WIDE)):
        page.set_viewport_size(size)
        page.screenshot(path=tmp_path / f"app-{scheme}-{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    found = axe.run(page, options=rules).response["violations"]
    # Gradio's field for files has a small button, and a button in a button.
    faults = [(fault["id"], node["html"]) for fault in found for node in fault["nodes"] if "pload" not in node["html"]]
    assert faults == []


def test_what_is_too_large_is_refused(page: Page) -> None:
    page.locator("input[type=file]").set_input_files([uploaded("large.png", b"0" * 1_500_000)])
    expect(page.get_by_text("exceed the maximum allowed size").first).to_be_visible()


def test_it_ends_without_a_trace(served: Served) -> None:
    """The last test: SIGTERM ends the page, and uploads and results are gone."""
    with urlopen(served.address) as answer:
        assert answer.status == 200
    (folder,) = served.temporary.glob("tsd-app-*")
    assert any(folder.rglob("*.png"))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(SECONDS) == 143
    assert list(served.temporary.iterdir()) == []
