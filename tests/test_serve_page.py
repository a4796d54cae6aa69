"""The page in a real browser: a clip is dropped, a move chosen, the anchor seen, the render made and compared."""

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from recapture.serve.settings import Settings

from .service import Server, worker_thread
from .test_pipeline import write_clip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="the Debian package chromium is not installed"),
]

PATIENCE_S = 240


@pytest.fixture
def browser() -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1200,1600",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def test_a_clip_is_filmed_again_from_the_page(browser, small_svd, tmp_path):
    def find(name: str):
        return browser.find_element(By.ID, name)

    def until(what, seconds: int = PATIENCE_S):
        return WebDriverWait(browser, seconds).until(lambda _: what())

    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu")
    with Server(settings) as server, worker_thread(settings):
        browser.get(server.url)
        find("key").send_keys("rk_wrong")
        find("login").submit()
        until(lambda: "valid API key" in find("said").text)
        find("key").clear()
        find("key").send_keys(server.key())
        find("login").submit()
        until(lambda: find("drop").is_displayed())
        find("file").send_keys(str(write_clip(tmp_path / "walk.mp4")))
        until(lambda: find("picture").get_attribute("src"))
        assert "not filmed here" in find("holes").text
        before = find("picture").get_attribute("src")
        Select(find("preset")).select_by_visible_text("truck")
        until(lambda: find("picture").get_attribute("src") != before)
        assert find("camera").get_attribute("value").startswith("truck(")
        Select(find("quality")).select_by_visible_text("draft")
        find("estimate").click()
        until(lambda: "nothing cropped" in find("cost").text)
        find("start").click()
        line = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#renders li"))[0]
        until(lambda: "completed" in line.text)
        line.find_element(By.TAG_NAME, "button").click()
        until(lambda: find("compare").is_displayed())
        until(lambda: browser.execute_script("return document.getElementById('after').readyState") >= 2, 30)
        assert browser.execute_script("return document.getElementById('after').videoWidth") == 64
        browser.save_screenshot(str(tmp_path / "page.png"))
        browser.set_window_size(390, 844)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        serious = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert [entry["message"] for entry in serious if "401" not in entry["message"]] == []
