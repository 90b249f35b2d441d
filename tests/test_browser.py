"""The report and TensorBoard as a browser shows them. Needs Chromium and its driver, as Debian packages them."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]
PATIENCE = 60  # seconds for a page to show what is waited for; it usually takes two


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,1000")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def wait_for(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE).until(lambda b: b.execute_script(script))


@pytest.fixture
def sweep(lab: Any, tmp_path: Path) -> Path:
    assert lab("-m", "attempt=finetune,augment,cosine", "hydra.sweep.dir=outputs/grid") == 0
    return tmp_path / "outputs" / "grid"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_its_page(browser: Any, sweep: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((sweep / "report.html").as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # A table that is wider than its box says so, and keeps its names in sight; a phone makes cards of its rows.
    tables = browser.execute_script(
        """return [...document.querySelectorAll('.scroll > table')].map(table => {
            const [box, cell] = [table.parentElement, table.querySelector('td')];
            box.scrollLeft = 1e6;
            const moved = cell.getBoundingClientRect().left - box.getBoundingClientRect().left;
            const shade = getComputedStyle(box).backgroundImage;
            return [box.scrollLeft, moved, shade, table.classList.contains('many')];
        })"""
    )
    assert not any(scrolled for scrolled, *_ in tables)
    cells = browser.execute_script(
        """return [...document.querySelectorAll('table.many td')].map(cell => {
            const title = getComputedStyle(cell, '::before').content, place = cell.getBoundingClientRect();
            return [title, place.left, place.right, cell.scrollWidth <= cell.clientWidth];
        })"""
    )
    titles = {title.strip('"') for title, *_ in cells}
    assert ({"runs", "test accuracy", "verdict", "cosine"} <= titles) == (width == 390)
    assert all(left >= 0 and right <= width and whole for _, left, right, whole in cells)
    assert all(moved == 0 for _, moved, *_ in tables)
    assert all("gradient" in shade for *_, shade, many in tables if not many or width > 640)
    pictures = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth)")
    chart = browser.execute_script("return document.querySelector('picture img').getBoundingClientRect().width")
    assert chart <= width
    sections = browser.execute_script(
        """return [...document.querySelectorAll('nav a')].map(
            link => [link.innerText, document.querySelector(link.getAttribute('href')).innerText])"""
    )
    assert all(link == title for link, title in sections)
    assert {"Verdict", "Training curves", "Attempt by attempt"} <= {link for link, _ in sections}
    assert len(pictures) >= 8  # intervals, curves, and two of each attempt
    assert all(pictures)
    text = browser.execute_script("return document.body.innerText")
    for words in ("finetune", "augment", "cosine", "model.unfreeze", "random weights", "tensorboard --logdir"):
        assert words in text
    requests = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert [r for r in requests if not r.startswith("data:")] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_the_images_fits(browser: Any, sweep: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((sweep / "report.html").as_uri())
    browser.find_element("css selector", "a[href='dataset.html']").click()
    assert wait_for(browser, "return document.title") == "Data: folder/widget"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cut = "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert browser.execute_script(cut) == 0
    pictures = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth, i.alt])")
    assert len(pictures) == 1 + 3 * 4
    assert all(drawn and shown and words for drawn, shown, words in pictures)
    in_a_row = "row => row.clientHeight < 1.5 * row.firstElementChild.clientHeight"
    rows = browser.execute_script(f"return [...document.querySelectorAll('.examples')].map({in_a_row})")
    assert rows == [width == 1280] * 3
    requests = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert [r for r in requests if not r.startswith("data:")] == []


@pytest.fixture
def service(lab: Any, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("fastapi")
    network = "model.backbone=shufflenet_v2_x0_5"  # one that a process of its own knows as well
    assert lab("attempt=base", network, "model.weights=null", "hydra.run.dir=first") == 0
    words = ["task=serve", f"ckpt={tmp_path / 'first'}", "serve.port=0", f"hydra.run.dir={tmp_path / 'log'}"]
    command = [sys.executable, "-m", "mvtec_lab", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        found = (re.search(r"base of .* answers at (http://127.0.0.1:\d+)/predict", line) for line in process.stdout)
        try:
            yield next(filter(None, found))[1]
        finally:
            process.terminate()


def test_the_page_of_the_service_fits_a_phone(browser: Any, service: str, product: Path) -> None:
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"{service}/docs")
    wait_for(browser, "return document.querySelectorAll('#model tr').length && document.querySelector('#fields tr')")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    cells = "return Object.fromEntries([...document.querySelectorAll('td')].map(c => [c.innerText, c.clientHeight]))"
    heights = browser.execute_script(cells)
    assert heights["Judge images"] == heights["method"] == heights["attempt"]  # one line, no word is broken
    browser.find_element("id", "files").send_keys(str(product / "test/hole/000.png"))
    browser.find_element("css selector", "#try button").click()
    text = "return document.getElementById('answers').innerText"
    assert wait_for(browser, f"{text}.includes('this model draws no map')")
    browser.find_element("id", "map").click()  # who does not ask where is told nothing
    browser.find_element("css selector", "#try button").click()
    gone = (
        "const said = document.getElementById('answers').innerText; return said.includes('000.png') && !said.includes"
    )
    assert wait_for(browser, f"{gone}('draws no map')")


@pytest.fixture
def tensorboard(sweep: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep.parent), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # ends when the server ends: a start that fails does not hang
        if "Press CTRL+C" in line:
            break
    yield f"http://localhost:{port}/"
    process.terminate()
    process.wait()


def test_tensorboard_compares_the_attempts(browser: Any, tensorboard: str) -> None:
    text = "return document.body.innerText"
    browser.get(f"{tensorboard}#timeseries")
    for run in ("grid/finetune", "grid/augment", "grid/cosine"):
        assert wait_for(browser, f"{text}.includes('{run}')")
    sections = ["loss", "metrics", "optimizer", "pictures"]
    for section in sections:
        assert wait_for(browser, f"{text}.includes('{section}')"), section
    heads = f"{text}.split('\\n').filter(line => {sections}.includes(line))"
    assert wait_for(browser, heads)[0] == "loss"  # what one looks at first
    browser.get(f"{tensorboard}#hparams")
    browser.refresh()
    # the page lives in shadow roots, which innerText does not enter
    deep = """
        const found = [];
        const walk = node => {
            if (node.nodeType === Node.TEXT_NODE) found.push(node.data);
            if (node.shadowRoot) walk(node.shadowRoot);
            node.childNodes.forEach(walk);
        };
        walk(document.body);
        return found.join('\\n')"""
    for words in ("attempt", "grid/finetune", "grid/cosine", "test_best/accuracy"):
        assert wait_for(browser, f"{deep}.includes('{words}')"), words
