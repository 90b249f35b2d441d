"""A whole round in headless Chromium: predictions, a review by keyboard, a new version, a model that learns from it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_product
from PIL import Image
from test_browser import browser, wait_for  # a fixture
from test_review import start

from mvtec_lab.results import read_csv

pytest.importorskip("starlette")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="chromium and chromedriver are not installed",
    ),
]
ESCAPE = "\ue00c"  # as WebDriver writes it
SAVED = (  # that so many images are reviewed, and no action waits
    "const said = document.getElementById('progress').innerText; "
    "return said.startsWith('{} of') && !said.includes('saved')"
)


@pytest.fixture
def predictions(lab: Callable[..., int], tmp_path: Path) -> Path:
    """What task=predict says of new images, one of a kind that the model has not learnt."""
    assert lab("attempt=base", "hydra.run.dir=first") == 0
    write_product(tmp_path / "scratch", {"good": 3, "crack": 3, "hole": 3}, train_good=0, size=48)
    new = (tmp_path / "scratch/test").rename(tmp_path / "new")
    (new / "hole/000.png").rename(new / "hole/<img src=x onerror=alert(1)>.png")  # a name is text
    assert lab("task=predict", "ckpt=first", f"source={new}", "hydra.run.dir=predicted") == 0
    return tmp_path / "predicted"


window = browser  # a second one


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def test_from_predictions_to_a_retrained_model(
    browser: Any,
    predictions: Path,
    lab: Callable[..., int],
    tmp_path: Path,
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    process, address = start(predictions)
    loaded = "return document.getElementById('frame').dataset.shown === sessionStorage.getItem('current')"
    name = "return document.getElementById('name').innerText"
    try:
        browser.get(address)
        wait_for(browser, "return sessionStorage.getItem('current')")
        wait_for(browser, loaded)
        listed = "return document.getElementById('help').innerText"
        press(browser, "p", "?")
        keys_shown = browser.execute_script(listed)
        assert "show or close this list" in keys_shown
        assert "drop the image" in keys_shown
        assert "heat map" not in keys_shown  # this model draws none
        press(browser, ESCAPE)  # closes the list alone; the next one stops painting
        assert browser.execute_script("return document.getElementById('help').hidden")
        painting = "return document.getElementById('frame').classList.contains('drawing')"
        assert browser.execute_script(painting)
        press(browser, ESCAPE)
        assert not browser.execute_script(painting)
        keys = {"good": "1", "crack": "2", "hole": "3"}
        for done in range(1, 10):  # every image gets the class of its folder
            wait_for(browser, loaded)
            kind = Path(browser.execute_script(name)).parent.name
            if kind == "crack":  # a stroke across the middle
                press(browser, "p")
                canvas = browser.find_element("id", "canvas")
                drag = ActionChains(browser).move_to_element_with_offset(canvas, -60, 0).click_and_hold()
                drag.move_by_offset(60, 0).move_by_offset(60, 0).release().perform()
            if kind == "hole":
                press(browser, "b")
                canvas = browser.find_element("id", "canvas")
                ActionChains(browser).move_to_element_with_offset(canvas, -60, -60).click_and_hold().move_by_offset(
                    100, 90
                ).release().perform()
            press(browser, keys[kind])
            wait_for(browser, SAVED.format(done))
        press(browser, "u")  # and the last one again
        wait_for(browser, SAVED.format(8))
        wait_for(browser, loaded)
        kind = Path(browser.execute_script(name)).parent.name
        # The server is killed and begins again while the page is open: what is answered meanwhile waits, and is sent.
        port = address.rpartition(":")[2].strip("/")
        process.kill()
        process.communicate()
        press(browser, keys[kind])
        wait_for(browser, "return document.getElementById('message').innerText.includes('Not saved yet')")
        process, _ = start(predictions, port)
        wait_for(browser, SAVED.format(9))
        assert browser.execute_script("return document.querySelectorAll('img').length") == 1
        browser.find_element("id", "export").click()
        wait_for(browser, "return document.getElementById('message').innerText.includes('Written')")
        command = browser.find_element("css selector", "#message pre").text
        assert [entry for entry in browser.get_log("browser") if "Refused" in entry["message"]] == []
        requests = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
        assert all(r.startswith((address, "data:")) for r in requests)
        for width in (1280, 400):
            size = {"width": width, "height": 860, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    version = predictions / "review/version-1"
    rows = read_csv(version / "CHANGES.csv")
    assert {(Path(row["was"]).parent.name, row["label"], row["change"]) for row in rows} == {
        (kind, kind, "added") for kind in keys
    }
    masks = [row["path"] for row in rows if row["mask"]]
    assert len(masks) == 3
    for path in masks:
        mask = np.asarray(Image.open(version / "ground_truth/crack" / f"{Path(path).stem}_mask.png"))
        assert mask.shape == (48, 48)
        assert 0 < (mask > 0).mean() < 0.5
        assert mask[24, 24] == 255
    assert [row["boxes"] for row in rows if row["label"] == "hole"] == ["1"] * 3
    words = [word for word in command.split()[3:] if not word.startswith("data=")]
    assert lab(*words, "hydra.run.dir=second") == 0
    first, second = (json.loads((tmp_path / run / "result.json").read_text())["counts"] for run in ("first", "second"))
    assert second["test"] == first["test"]  # both models can be compared on it
    assert sum(second["train"].values()) == sum(first["train"].values()) + 9
    assert lab("task=compare", "dirs=[first,second]", "hydra.run.dir=both") == 0
    rows = read_csv(tmp_path / "both/summary.csv")
    assert {row["attempt"] for row in rows} == {"base", "base on version-1"}
    assert {row["category"] for row in rows} == {"widget"}  # not two products


def test_two_windows_at_once_lose_nothing(browser: Any, window: Any, predictions: Path) -> None:
    """The second one answers while it has no network, about an image that the first one has changed meanwhile."""
    process, address = start(predictions)
    loaded = "return document.getElementById('frame').dataset.shown === sessionStorage.getItem('current')"
    message = "return document.getElementById('message').innerText.includes('{}')"
    try:
        for page in (browser, window):
            page.get(address)
            wait_for(page, "return sessionStorage.getItem('current')")
            wait_for(page, loaded)
        current = [page.execute_script("return sessionStorage.getItem('current')") for page in (browser, window)]
        assert current[0] == current[1]
        off = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        window.execute_cdp_cmd("Network.enable", {})
        window.execute_cdp_cmd("Network.emulateNetworkConditions", {**off, "offline": True})
        press(window, "x")
        wait_for(window, message.format("Not saved yet"))
        press(browser, "2")
        wait_for(browser, SAVED.format(1))
        window.execute_cdp_cmd("Network.emulateNetworkConditions", {**off, "offline": False})
        wait_for(window, message.format("somebody else has changed this image"))
        wait_for(window, SAVED.format(1))
        press(window, "u")  # takes back what is its own alone
        wait_for(window, message.format("nothing of yours to undo"))
        image = f"fetch('/api/items/{current[0]}').then(answer => answer.json()).then(arguments[0])"
        assert browser.execute_async_script(image)["verdict"] == "relabelled"
        press(browser, "u")
        wait_for(browser, SAVED.format(0))
        wait_for(window, SAVED.format(0))  # without a key: it looks for what others have done
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
