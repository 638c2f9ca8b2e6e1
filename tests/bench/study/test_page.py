"""The voting page in a real browser, opened from its file with the network blocked. Skipped where no browser is."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import cli
from bench.study.study import Study, read_study
from bench.study.votes import Rules, open_box

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, BrowserContext, Page, expect

MAKE = ("--methods", "bicubic", "lanczos", "--raters", "3", "--traps", "1", "--duplicates", "0.34")
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
Start = Callable[..., BrowserContext]


@pytest.fixture
def start(browser: Browser) -> Iterator[Start]:
    """Opens a context whose pages may ask for nothing but files, and in which nothing may go wrong."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def start(*, offline: bool = True, **options) -> BrowserContext:
        context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **options})
        context.set_default_timeout(300_000)
        context.set_offline(offline)
        context.on("console", lambda message: complaints.append(message.text))
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        contexts.append(context)
        return context

    expect.set_options(timeout=300_000)
    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def make(run: Path, out: Path, *arguments: str) -> tuple[Study, str]:
    """A study, and the address of its page without a rater."""
    assert cli.main(["study", "make", str(run), *MAKE, *arguments, "--out", str(out)]) == 0
    page = out / ("page.html" if "--single-file" in arguments else "page/index.html")
    return read_study(out), page.as_uri()


def vote(page: Page, key: str) -> None:
    """Presses a key when the question takes an answer, and waits for the next."""
    expect(page.locator("#unsure")).to_be_enabled()
    before = page.locator("#count").inner_text()
    page.keyboard.press(key)
    expect(page.locator("#count")).not_to_have_text(before)


def test_end_to_end_with_the_keyboard(start: Start, run: Path, tmp_path: Path) -> None:
    study, address = make(run, tmp_path / "study", "--show", "hr", "lr", "--send-to", "<b>me</b>")
    context = start(device_scale_factor=2)
    page = context.new_page()
    page.goto(f"{address}#rater=2")
    assert page.locator("#rater").inner_text() == "2 of 3"
    page.keyboard.press("Enter")
    vote(page, "1")
    expect(page.locator("#unsure")).to_be_enabled()
    assert page.locator("#panes .tag").all_inner_texts() == ["Reference", "Input", "A", "B"]
    assert page.locator("#zoom").inner_text() == "1:1"
    place = study.pictures_of(study.trials_of(1)[1])[0]
    box = page.locator("#panes img[alt='Picture A']").bounding_box()
    assert box is not None
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    left, top = round(2 * box["x"]), round(2 * box["y"])  # up to one pixel, since layout knows sixty-fourths
    original = np.asarray(Image.open(tmp_path / "study" / "page" / "images" / f"{place}.webp").convert("RGB"))
    assert any(  # one pixel of the picture is one of the screen, which has two to one of CSS
        np.array_equal(shot[y + 30 : y + 64, x + 40 : x + 80], original[30:64, 40:80])
        for y in (top - 1, top, top + 1)
        for x in (left - 1, left, left + 1)
    )
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert page.locator("#zoom").inner_text() == "2×"
    moved = page.locator("#panes img").evaluate_all(
        "all => all.map((image) => image.style.transform.split('scale')[1])"
    )
    assert len(set(moved)) == 1
    vote(page, "2")
    vote(page, "b")
    page.close()

    page = context.new_page()  # the tab was closed: it goes on where it was, and remembers the rater
    page.goto(address)
    assert page.locator("#rater").inner_text() == "2 of 3"
    expect(page.get_by_role("button", name="Go on with question 2")).to_be_focused()
    page.keyboard.press("Enter")
    vote(page, "n")
    for _ in range(len(study.trials[1]) - 2):
        vote(page, "2")
    expect(page.get_by_role("heading", name="Thank you")).to_be_focused()
    assert "<b>me</b>" in page.locator("#done").inner_text()
    page.keyboard.press("Tab")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    votes = tmp_path / "votes" / waiting.value.suggested_filename
    waiting.value.save_as(votes)
    page.reload()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()

    ballot = open_box([votes], study, Rules()).ballots[0]
    assert ballot.rater == 1
    assert [answer.chosen for answer in ballot.answers] == [0, None] + [1] * (len(study.trials[1]) - 2)
    assert all(answer.seconds >= 0.3 for answer in ballot.answers)
    raw = json.loads(votes.read_text())
    assert [answer["revised"] for answer in raw["answers"][:3]] == [0, 1, 0]
    assert {(answer["zoom"], answer["ratio"]) for answer in raw["answers"][1:]} == {(100, 200)}
    assert set(raw) == {"format", "schema", "study", "rater", "token", "simulated", "answers", "checksum"}
    score = ["study", "score", str(votes), "--study", str(tmp_path / "study"), "--keep-flagged", "--resamples", "0"]
    assert cli.main([*score, "--out", str(tmp_path / "figure8")]) == 0
    report = (tmp_path / "figure8" / "figure8.md").read_text(encoding="utf-8")
    assert "SIMULATED" not in report
    assert "1 raters" in report
    votes.write_text(votes.read_text().replace('"chosen": null', f'"chosen": {raw["answers"][1]["shown"][0]}'))
    assert cli.main([*score, "--out", str(tmp_path / "figure8")]) == 2


class Endpoint(BaseHTTPRequestHandler):
    """Takes what is posted, and lets any page read the answer."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_posted(start: Start, run: Path, tmp_path: Path, scheme: str) -> None:
    """axe-core finds no fault by WCAG 2.2 AA, nothing is wider than a phone; screenshots stay in pytest's folder."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    Endpoint.bodies = []
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    post = f"http://127.0.0.1:{server.server_port}/votes"
    _, address = make(run, tmp_path / "study", "--single-file", "--mode", "best", "--traps", "0", "--post", post)
    page = start(offline=False, color_scheme=scheme).new_page()
    page.goto(f"{address}#rater=1")

    def look(name: str) -> None:
        page.set_viewport_size(PHONE)
        page.screenshot(path=tmp_path / f"{name}-{scheme}-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        page.set_viewport_size(WIDE)
        page.screenshot(path=tmp_path / f"{name}-{scheme}-wide.png")
        found = axe.run(page, options=rules).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == [], name

    look("intro")
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#unsure")).to_be_enabled()
    look("vote")
    while page.locator("#done").is_hidden():
        expect(page.locator("#unsure")).to_be_enabled()
        before = page.locator("#count").inner_text()
        page.get_by_role("button", name="B 2").click()
        expect(page.locator("#count")).not_to_have_text(before)
    look("done")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#sent")).to_have_text("Sent. Thank you.")
    server.shutdown()
    sent = Endpoint.bodies[0]
    assert b'name="votes"' in sent
    assert b'"format": "bench study votes"' in sent
