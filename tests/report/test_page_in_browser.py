"""The report in a real browser: it fits wide and narrow, light and dark screens."""

import base64
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import to_json
from jaxmatch.data.thumbnails import thumbnail
from jaxmatch.evaluation import examples as module
from jaxmatch.evaluation.examples import CLASSES, OF_CLASS, SHOWN, SIDE
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.report.page import report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def write(folder, recipe, classes):
    """The folder of a finished run with random predictions of ``classes``."""
    folder.mkdir(parents=True)
    config, _ = from_flags(f"{recipe}:mnist5k,labels=40", [])
    facts = {"classes": list(classes), "labels": [0], "unlabeled": 4000}
    (folder / "config.json").write_text(json.dumps({**to_json(config), "facts": facts}))
    random = np.random.default_rng(len(recipe))
    probabilities = random.dirichlet(np.full(len(classes), 0.2), 600).astype(np.float32)
    labels = random.integers(0, len(classes), 600)
    metrics = evaluation(Answers(probabilities, np.ones(600, bool)), labels, classes)
    lines = [
        {"step": step, "loss/total": 1 / step, "pseudo/coverage": 0.5}
        | {"test/teacher/accuracy": step / 40}
        for step in (10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracies = dict.fromkeys(("last", "mean_20", "median_20", "best"), 0.5)
    summary = {
        "evaluated": "teacher",
        "steps": 20,
        "images_seen": {"labeled": 640, "unlabeled": 4480},
        "forward_images": 9600,
        "seconds": 5.0,
        "teacher": {**accuracies, "metrics": metrics},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return metrics


@pytest.fixture(params=[4, 30, 100], ids=lambda number: f"{number} classes")
def page(request, tmp_path, monkeypatch):
    """The page of two runs with long names of files and classes."""
    classes = tuple(f"{'<i>longish' * 3}_{number}" for number in range(request.param))
    long = tmp_path / ("a_folder_with_a_long_name" * 6)
    metrics = write(long / "fixmatch", "fixmatch", classes)
    write(long / "supervised", "supervised", classes)
    image = np.random.default_rng(0).integers(0, 256, (90, 40, 3), np.uint8)
    one = {
        "picture": base64.b64encode(thumbnail(Image.fromarray(image), SIDE)).decode(),
        "name": "camera_17_2021_" * 12 + ".png",
        "truth": classes[0],
        "prediction": classes[1],
        "confidence": 0.987,
    }
    kinds = ("mistakes", "uncertain", "wrong_pseudo_labels")
    shares = ("recall", "precision", "f1")
    found = {
        **{kind: [one] * SHOWN for kind in kinds},
        "step": 600,
        "test": [600, 9000],
        "by_class": {
            name: {"count": 70, "examples": [one] * OF_CLASS} for name in classes[:CLASSES]
        },
        "metrics": metrics,
        "intervals": {
            "accuracy": [0.4, 0.6],
            "per_class": {name: {key: [0.1, 0.9] for key in shares} for name in classes},
        },
    }
    monkeypatch.setattr(module, "examples", lambda folder, place: found)
    return report([long / "fixmatch", long / "supervised"], tmp_path / "report.html")[0]


def test_the_page_fits_the_screen(browser, page, tmp_path):
    backgrounds = set()
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
            )
            opened, complaints = context.new_page(), []
            opened.on("console", lambda message, seen=complaints: seen.append(message.text))
            opened.on("pageerror", lambda error, seen=complaints: seen.append(str(error)))
            opened.on("request", lambda sent, seen=complaints: seen.append(sent.url[:40]))
            opened.goto(page.as_uri())
            opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
            images = opened.evaluate(
                "[...document.images].map(one => [one.complete, one.naturalWidth])"
            )
            assert len(images) > 30
            assert all(complete and size > 0 for complete, size in images)
            others = [text for text in complaints if not text.startswith(("file:", "data:"))]
            assert others == []
            backgrounds.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
            picture = opened.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
            assert len(picture) > 50_000
            main = opened.evaluate(
                "[...document.querySelectorAll('.wide')].slice(0, 1)"
                ".map(one => one.scrollWidth <= one.clientWidth)"
            )
            if width == 1280:
                assert main == [True]  # every column is on the screen
            context.close()
    assert len(backgrounds) == 2
