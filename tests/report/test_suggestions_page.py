"""The page of suggestions in a real browser: what a person sees, chooses and saves."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxmatch.data.levels import DEFAULT
from jaxmatch.data.source import Source
from jaxmatch.evaluation.suggest import Suggestions, write_table
from jaxmatch.report.suggestions import write_page

CLASSES = ("ant", "bee", 'cat, "wild"', "d<b>og", "\u00e9l\u00e9phant")
COUNT = 14
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def found():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, 28, 28, 3), np.uint8)
    return Suggestions(
        source=Source(
            name="npz:<digits>.npz",
            classes=CLASSES,
            images=images,
            labels=np.full(COUNT, -1, np.int32),
            rows=np.arange(COUNT),
            test_images=images[:0],
            test_labels=np.zeros(0, np.int32),
        ),
        key="index",
        names=tuple(map(str, range(COUNT))),
        positions=np.arange(COUNT),
        probabilities=random.dirichlet(np.ones(len(CLASSES)), COUNT),
        similar=np.arange(COUNT),
        classes=CLASSES,
        pool=1000,
        rule="clue",
        left_out={},
    )


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def files(found, tmp_path):
    write_table(tmp_path / "next.csv", found)
    command = f"jaxmatch train {'--config.data.x=y ' * 20}"
    write_page(tmp_path / "next.html", found, "next.csv", "runs/a", DEFAULT, command)
    return tmp_path


def opened(browser, file, width=1280, scheme="light"):
    """The page, and what the browser complains of."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"file://{file}")
    return page, complaints


def rows(file):
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_labels_that_a_person_chooses_are_saved_and_kept(browser, found, files):
    page, complaints = opened(browser, files / "next.html")
    assert page.locator("#count").inner_text() == f"0 of {COUNT} labeled"
    page.locator("select").nth(1).select_option(label='cat, "wild"')
    page.locator("select").nth(2).select_option(label="d<b>og")
    page.locator("select").nth(5).select_option(label=CLASSES[4])
    page.locator("button[data-class]").nth(9).click()
    page.locator("select").nth(2).select_option(index=0)  # on second thoughts
    assert page.locator("#count").inner_text() == f"3 of {COUNT} labeled"
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "next.csv"
    download.value.save_as(files / "saved.csv")
    expected = rows(files / "next.csv")
    for place, name in ((1, CLASSES[2]), (5, CLASSES[4]), (9, found.predictions[9])):
        expected[place]["label"] = name
    assert rows(files / "saved.csv") == expected
    page.wait_for_timeout(1000)  # the browser writes its storage a moment later
    page.reload()
    assert page.locator("#count").inner_text() == f"3 of {COUNT} labeled"
    assert page.locator("select").nth(1).input_value() == "2"
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_readable(browser, files, width, scheme):
    page, complaints = opened(browser, files / "next.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert complaints == []
    boxes = [card.bounding_box() for card in page.locator("li").all()]
    columns = len({box["x"] for box in boxes})
    assert columns == (2 if width == 390 else 5)
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    for selector in ("select", "li button", "#save"):
        assert page.locator(selector).first.bounding_box()["height"] >= 36  # for fingers
    assert page.locator("img").first.evaluate("image => image.naturalWidth") == 28
    page.screenshot(path=files / "page.png")
    with Image.open(files / "page.png") as picture:
        corner = np.asarray(picture.convert("L"))[-1, 0]
    assert (corner < 60) == (scheme == "dark")
    assert contrast(page, ".why") >= 4.5
    assert contrast(page, "#save") >= 4.5


def contrast(page, selector):
    """The ratio of contrast of a text and what is behind it, as WCAG 2.2 defines it."""
    script = """element => {
      const color = getComputedStyle(element).color;
      while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)")
        element = element.parentElement;
      return [color, getComputedStyle(element).backgroundColor];
    }"""
    lights = []
    for text in page.locator(selector).first.evaluate(script):
        levels = np.array([int(each) for each in text[text.index("(") + 1 : -1].split(",")[:3]])
        levels = levels / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        lights.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
