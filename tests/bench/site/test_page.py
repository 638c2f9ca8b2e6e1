"""The page in a real browser, opened from its file with the network blocked. Skipped where no browser is installed."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page

MEAN = "</script><script>window.hacked = 1</script>"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
COMPARE = "#view=compare&set=mini&image=__proto__&a=bicubic&b=truth%3A"
VIEWS = {
    "overview": "#view=overview",
    "compare": COMPARE,
    "browse": "#view=browse",
    "records": "#view=records&set=mini&a=0&metric=0",
}

Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, site: Path) -> Iterator[Open]:
    """Opens a site at a fragment of its address. Nothing but files may be asked for, and nothing may go wrong."""
    complaints: list[str] = []
    contexts = []

    def open_page(fragment: str = "", name: str = "folder/index.html", **options) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto((site / name).as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def card_texts(page: Page, selector: str) -> list[str]:
    """Texts of the cards as the page has them: when a card is drawn is up to the browser (`content-visibility`)."""
    return page.locator(f".card {selector}").all_text_contents()


def wait_until(page: Page, condition: str) -> None:
    """Waits for a condition in JavaScript. Playwright's own waiting evaluates text, which the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"this did not become true: {condition}")


def transforms(page: Page) -> list[str]:
    """Where each picture of the panes is, in the order of the panes."""
    return page.locator("#panes img").evaluate_all("images => images.map((image) => image.style.transform)")


@pytest.mark.parametrize("name", ["folder/index.html", "single.html"])
def test_every_view_opens_and_names_stay_text(open_page: Open, name: str) -> None:
    page = open_page(name=name)
    assert "My net </script><script>window.hacked = 1</script>" in texts(page, "#overview tbody th")
    page.get_by_role("button", name="My net").first.click()
    assert "a <remark>" in page.locator("dialog[open]").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Browse").click()
    assert card_texts(page, ".name")[1:] == ["<img src=x onerror=alert(1)>", "__proto__"]
    wait_until(page, "[...document.querySelectorAll('.thumb img')].every((image) => image.naturalWidth)")
    page.locator(".card").last.click()
    wait_until(page, "[...document.querySelectorAll('#panes img')].every((image) => image.naturalWidth)")
    assert page.locator("#image option:checked").inner_text() == "__proto__"
    page.get_by_role("link", name="Overview").click()
    page.locator("a.number").first.click()
    assert texts(page, "#records-table tbody tr")[2].split() == ["__proto__", "22.0000", "2"]
    assert page.evaluate("window.hacked") is None


def test_sorting_and_downloads(open_page: Open) -> None:
    page = open_page()
    rows = "#overview table.numbers >> nth=0 >> tbody th"
    assert texts(page, rows)[0] == "Bicubic"
    header = page.get_by_role("button", name="PSNR ↑").first
    header.click()
    header.click()
    assert texts(page, rows)[1] == "Bicubic"
    assert page.locator("th[aria-sort=descending]").count() == 1
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV").click()
    table = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
    shown = [float(text) for text in texts(page, "#overview table.numbers >> nth=0 >> tbody td:nth-child(3) a")]
    assert shown == [round(float(row["psnr"]), 2) for row in table if row["source"] == "measured"][::-1]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="JSONL").click()
    assert len(Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()) == 2 * 2 * 3
    page.locator("a.number").first.focus()
    assert "95 % interval" in page.locator("#tip").inner_text()
    assert page.get_by_text("OSEDiff").count() == 0 or not page.locator(".paper").is_visible()
    page.get_by_label("The paper's own figures").check()
    assert page.locator(".paper").get_by_text("OSEDiff").first.is_visible()
    assert "+1.00 [" in texts(page, ".forest td.value")[1]
    page.get_by_label("Metric").select_option(label="LPIPS ↓")
    page.get_by_label("Differences to").select_option(index=1)
    assert "+0.1000" in texts(page, ".forest td.value")[1]


def test_panes_move_and_zoom_together_and_the_link_says_where(open_page: Open) -> None:
    page = open_page("#view=compare&set=mini&image=__proto__&mode=side")
    assert len(transforms(page)) == 4
    page.mouse.move(300, 400)
    page.mouse.wheel(0, -600)
    page.mouse.down()
    page.mouse.move(340, 430)
    page.mouse.up()
    moved = transforms(page)
    assert len(set(moved)) == 1
    assert "scale(1)" not in moved[0]
    wait_until(page, "location.hash.includes('zoom=')")
    link = page.evaluate("location.hash")
    again = open_page(link)
    assert again.evaluate("location.hash") == link
    numbers = [
        [
            float(number)
            for number in text.replace("px", "").replace("(", " ").replace(")", " ").replace(",", " ").split()
            if number[-1].isdigit()
        ]
        for text in (moved[0], transforms(again)[0])
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1)
    old = open_page("#image=no-such&a=nobody")
    assert "which is not here" in old.locator("#notice").inner_text()


def test_a_pixel_is_shown_as_a_pixel(open_page: Open, site: Path) -> None:
    page = open_page("#view=compare&set=mini&image=__proto__&a=my-net&b=my-net&mode=flip&x=48&y=32&zoom=8")
    wait_until(
        page, "[...document.querySelectorAll('#panes img')].every((image) => image.complete && image.naturalWidth)"
    )
    box = page.locator("#panes").bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    original = np.asarray(Image.open(site / "run & co" / "images" / "mini" / "my-net" / "__proto__.png"))
    left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for x, y in ((48, 32), (49, 32), (52, 36), (44, 30)):
        middle = shot[int(top + (y - 32) * 8 + 4), int(left + (x - 48) * 8 + 4)]
        assert np.array_equal(middle, original[y, x])


def test_wipe_difference_and_keys(open_page: Open) -> None:
    page = open_page(COMPARE)
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    assert page.locator(".over").evaluate("layer => layer.style.clipPath") in (
        "inset(0px 0px 0px 100%)",
        "inset(0 0 0 100%)",
    )
    page.keyboard.press("2")
    assert page.locator("input[data-pick=a-1]").is_checked()
    page.keyboard.press("Shift+Digit1")
    assert page.locator("input[data-pick=b-0]").is_checked()
    page.keyboard.press("f")
    page.keyboard.press("1")
    shown = page.locator("#panes img").evaluate_all(
        "all => all.filter((image) => image.checkVisibility({visibilityProperty: true})).map((image) => image.alt)"
    )
    assert shown == ["__proto__: Bicubic"]
    page.keyboard.press("2")
    page.keyboard.press("x")
    assert page.locator(".difference").evaluate("layer => layer.style.filter") == "brightness(8)"
    page.keyboard.press("d")
    assert page.locator("#zoom").inner_text() != "1×"
    page.keyboard.press("]")
    assert page.locator("#image option:checked").inner_text() != "__proto__"
    page.get_by_text("Keys", exact=True).click()
    page.get_by_label("Keys on").uncheck()
    page.keyboard.press("w")
    assert page.locator(".difference").count() == 1


def test_browsing_finds_failures(open_page: Open) -> None:
    page = open_page("#view=browse")
    assert card_texts(page, ".facts span:nth-child(2)") == ["−1.00 PSNR", "+2.00 PSNR", "+2.00 PSNR"]
    page.get_by_label("first").select_option("best")
    assert card_texts(page, ".facts span:nth-child(2)")[-1] == "−1.00 PSNR"
    page.get_by_label("Lowest value of A").fill("20")
    assert page.locator(".card").count() == 2
    assert "2 of 3 images" in page.locator("#browse-note").inner_text()
    assert "from=20" in page.evaluate("location.hash")


def test_a_leaderboard_of_two_runs(open_page: Open, site: Path, tmp_path: Path) -> None:
    page = open_page(name="several/index.html")
    methods = texts(page, "#table-board table.board >> nth=0 >> tbody th")
    assert methods == ["Bicubic", f"My net {MEAN}", "Bicubic"]
    assert texts(page, "#table-board .apart li") == [f"My net {MEAN} · other <run>: seed 7, not 42 as in run & co"]
    page.locator("#table-board").get_by_role("button", name="PSNR ↑").first.click()
    assert texts(page, "#table-board table.board >> nth=0 >> tbody th")[-1] == f"My net {MEAN}"
    with page.expect_download() as waiting:
        page.locator("#table-board").get_by_role("button", name="CSV").click()
    table = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
    assert [row["run"] for row in table] == ["run & co", "run & co", "other <run>", "other <run>"]
    figure = page.locator("#table-board figure.time")
    assert "Figure 1: median seconds by bench latency, <timed>, 256 x 256 pixels" in figure.inner_text()
    assert "(timed with other weights or settings)" in figure.locator("svg").get_attribute("aria-label")
    page.get_by_label("Seconds").first.select_option(label="of the run")
    assert "Wall seconds of the run" in figure.inner_text()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]}).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
    page.set_viewport_size(PHONE)
    page.screenshot(path=tmp_path / "leaderboard-phone.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_flip_maps_and_originals(open_page: Open, site: Path) -> None:
    methods = "&a=bicubic%40run+%26+co&b=my-net%40run+%26+co"
    page = open_page(f"#view=compare&set=mini&image=__proto__{methods}", "several/index.html")
    page.keyboard.press("m")
    drawn = "image.alt.endsWith('FLIP map against the ground truth') && image.naturalWidth"
    wait_until(page, f"[...document.querySelectorAll('#panes img')].filter((image) => {drawn}).length === 2")
    tags = texts(page, "#panes .tag")
    means = [float(tag.rpartition(" ")[2]) for tag in tags]
    assert means[0] < means[1]  # the second differs by more from the ground truth
    wait_until(page, "location.hash.includes('mode=map')")
    link = page.locator("#picks a").first
    assert link.get_attribute("aria-label") == "Original of Bicubic · run & co"
    original = site / "run & co" / "images" / "mini" / "bicubic" / "__proto__.png"
    assert (site / "several" / link.get_attribute("href")).read_bytes() == original.read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_within_the_screen(open_page: Open, scheme: str, tmp_path: Path) -> None:
    """axe-core finds no fault by WCAG 2.2 AA, nothing is wider than a phone; screenshots stay in pytest's folder."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    page = open_page(color_scheme=scheme)
    for view, fragment in VIEWS.items():
        page.evaluate("fragment => location.hash = fragment", fragment)
        page.set_viewport_size(PHONE)
        page.screenshot(path=tmp_path / f"{view}-{scheme}-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], view
        page.set_viewport_size(WIDE)
        page.screenshot(path=tmp_path / f"{view}-{scheme}-wide.png")
        found = axe.run(page, options=rules).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == [], view
