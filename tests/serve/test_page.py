"""The page in a real browser: a clip is dropped, its path pulled, the anchor seen, the render made and compared."""

import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from recapture.client import Client
from recapture.engine.cameras import SourceView, parse_expression, presets
from recapture.engine.errors import CameraError
from recapture.serve.database import Database
from recapture.serve.keys import list_keys, revoke_key
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from .service import Server, worker_thread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="the Debian package chromium is not installed"),
]

PATIENCE_S = 600
SUBJECT_DEPTH = 1.3
FRACTIONS = [0.0, 0.1, 0.35, 0.5, 0.8, 1.0]

EXPRESSIONS = [
    *(preset.name for preset in presets()),
    "arc(20deg)+zoom(1.3)",
    "arc(-35, start=10deg, elevation=-12, ease=linear, look_at=0.7)",
    "pan(10deg) + dolly(0.3)",
    "dolly(0.2, to=0.5) + pan(15deg, from=0.5)",
    "truck(distance=-0.4, look_at=subject, ease=in)+tilt(-8)",
    "pedestal(.3, start=-.1, look_at=2) + roll(30, ease=out)",
    "crane(0.5, look_at=none)+orbit(400deg, from=.2, to=.9)",
    "dolly_zoom(-0.3, start=0.2) + arc(9)",
    "spiral(0.2, turns=-1.5, forward=0.3, look_at=none)",
    "truck()",
    "dolly(0.3)+arc(20deg)+dolly(0.2)+crane(-0.2)",
    "lemniscate(radius=2e-1, loops=3) +\tzoom(0.5, start=2)",
]
NO_EXPRESSIONS = [
    "",
    "arc(",
    "arc(20deg",
    "swirl(3)",
    "arc(20deg,)",
    "arc(20, 30)",
    "arc(angel=3)",
    "zoom(99)",
    "zoom(2deg)",
    "static(1)",
    "arc(20) pan(3)",
    "arc(20)+",
    "arc(1, look_at=none)",
    "pan(2, from=0.7, to=0.2)",
    "pan(1, ease=0.3)",
    "pan(--1)",
    "pan(é)",
]


@pytest.fixture
def browser(tmp_path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1400,1000",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.set_script_timeout(PATIENCE_S)
    yield driver
    driver.quit()


class Page:
    """What a person does with it, and sees of it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def find(self, css: str):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def until(self, what: Callable[[], object], seconds: int = PATIENCE_S):
        return WebDriverWait(self.browser, seconds).until(lambda _: what())

    @property
    def path(self) -> str:
        return self.find("#camera").get_attribute("value")

    @property
    def picture(self) -> str:
        return self.find("#picture").get_attribute("src")

    def type_path(self, text: str) -> None:
        self.find("#camera").send_keys(Keys.CONTROL + "a", Keys.NULL, text, Keys.TAB)

    def pull(self, handle: str, x: int, y: int) -> None:
        ActionChains(self.browser, duration=50).drag_and_drop_by_offset(
            self.find(f"[data-handle={handle}]"), x, y
        ).perform()

    def place(self, handle: str) -> tuple[int, int]:
        box = self.find(f"[data-handle={handle}]").rect
        return box["x"], box["y"]

    def modules(self, body: str, *arguments: object):
        """What `body` returns: JavaScript that sees the page's modules and the service's presets by name."""
        code = f"""
            const [names, {", ".join(f"a{i}" for i in range(len(arguments)))}] = arguments;
            const answer = arguments[arguments.length - 1];
            Promise.all([import("/page/camera.js"), import("/page/pull.js"), import("/page/vendor/three.module.min.js")])
              .then(([camera, pull, three]) => {{ const presets = Object.fromEntries(names.map((p) => [p.name, p])); {body} }})
              .then(answer, (error) => answer(`failed: ${{error.stack}}`));"""
        said = self.browser.execute_async_script(code, self.presets, *arguments)
        assert not str(said).startswith("failed: "), said
        return said

    presets: list[dict]


@pytest.fixture
def page(browser) -> Page:
    return Page(browser)


def view_of(fractions: list[float], subject_depth: float = SUBJECT_DEPTH) -> SourceView:
    K_px = np.array([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
    return SourceView(
        K_px=K_px, width=64, height=48, times_s=np.array(fractions), median_depth=1.0, subject_depth=subject_depth
    )


def test_the_page_and_the_service_mean_the_same_by_an_expression(page, tmp_path):
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        page.browser.get(server.url)
        page.presets = [preset.model_dump() for preset in client.presets()]
        rng = np.random.default_rng(0)
        expressions = [*EXPRESSIONS, *(random_expression(rng) for _ in range(60))]
        said = page.modules(
            """return a0.map((text) => {
                 const motions = camera.parse(text, presets);
                 return motions && { text: camera.format(motions), poses: a1.map((fraction) => {
                   const { c2w, zoom } = camera.pose(motions, fraction, a2);
                   return [c2w.clone().transpose().toArray(), zoom]; }) }; });""",
            expressions,
            FRACTIONS,
            SUBJECT_DEPTH,
        )
        for text, page_says in zip(expressions, said, strict=True):
            assert page_says, text
            path = parse_expression(text).resolve(view_of(FRACTIONS))
            for i, (c2w, zoom) in enumerate(page_says["poses"]):
                np.testing.assert_allclose(np.reshape(c2w, (4, 4)), path.c2w[i], atol=1e-9, err_msg=text)
                assert zoom * 100 == pytest.approx(path.K_px[i, 0, 0]), text
            again = parse_expression(page_says["text"]).resolve(view_of(FRACTIONS))  # what it writes is rounded
            np.testing.assert_allclose(again.c2w, path.c2w, atol=0.02, err_msg=f"{text} -> {page_says['text']}")
        assert page.modules("return a0.map((text) => camera.parse(text, presets));", NO_EXPRESSIONS) == [
            None for _ in NO_EXPRESSIONS
        ]
        for text in NO_EXPRESSIONS:
            with pytest.raises(CameraError):
                parse_expression(text)


def random_expression(rng: np.random.Generator) -> str:
    words = []
    for preset in rng.choice([p for p in presets() if p.name not in ("static", "dolly_zoom")], rng.integers(1, 4)):
        given = [
            f"{p.name}={rng.uniform(max(p.low, 0.9 * value - 0.2), min(p.high, 1.1 * value + 0.2)):.3f}"
            for p in preset.parameters
            if isinstance(value := p.default, float) and p.unit != "clip" and rng.random() < 0.6
        ]
        words.append(
            f"{preset.name}({', '.join(given)}, ease={rng.choice(['in', 'out', 'linear'])})".replace("(, ", "(")
        )
    return " + ".join(words)


PULLED = [
    # From a path, an end is pulled by (x, y, z); what the path is then made of.
    ("arc(20deg)", "end", (0.1, -0.2, 0.02), ["arc"]),
    ("arc(20deg)", "start", (-0.2, 0.0, 0.0), ["arc"]),
    ("arc(20deg)", "end", (0.0, 0.0, 0.3), ["arc", "dolly"]),
    ("truck(0.1)", "end", (0.3, 0.0, 0.0), ["truck"]),
    ("truck(0.1)", "end", (0.3, -0.2, 0.1), ["truck", "pedestal", "dolly"]),
    ("pan(10deg)", "end", (0.0, 0.0, 0.2), ["pan", "dolly"]),
    ("crane(0.2)", "end", (0.0, -0.15, 0.0), ["crane"]),
    ("crane(0.2)", "end", (0.3, 0.0, 0.0), ["crane", "arc"]),
    ("spiral(0.1)", "end", (0.1, 0.0, 0.0), ["spiral"]),
    ("dolly(0.2, start=0.1) + zoom(1.4)", "start", (0.0, 0.0, -0.2), ["dolly", "zoom"]),
]


def test_where_a_handle_is_pulled_the_camera_goes(page, tmp_path):
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        page.browser.get(server.url)
        page.presets = [preset.model_dump() for preset in client.presets()]
        for text, end, by, made_of in PULLED:
            fraction = 0 if end == "start" else 1
            before = parse_expression(text).resolve(view_of([0.0, 1.0])).c2w[fraction, :3, 3]
            target = (before + by).tolist()
            after = page.modules(
                """const to = new three.Vector3(...a2);
                   const pulled = pull.pull(camera.parse(a0, presets), a1, (place) => place.sub(to), presets, a3);
                   return camera.format(pulled);""",
                text,
                end,
                target,
                SUBJECT_DEPTH,
            )
            path = parse_expression(after)
            assert [motion.preset.name for motion in path.motions] == made_of, (text, by, after)
            reached = path.resolve(view_of([0.0, 1.0])).c2w[fraction, :3, 3]
            assert math.dist(reached, target) < 0.07, (text, by, after)
            assert math.dist(reached, target) < 0.5 * math.dist(before, target), (text, by, after)
        look = "return camera.format(pull.pullCenter(camera.parse(a0, presets), a1, a2));"
        assert page.modules(look, "arc(20deg) + pan(3deg)", 0.9, 1.3) == "arc(20deg, look_at=0.9) + pan(3deg)"
        assert page.modules(look, "crane(0.2, look_at=0.9)", 1.31, 1.3) == "crane(0.2)"


LOSE_A_PART = """const real = window.fetch;
window.lostParts = 0;
window.fetch = (path, options) =>
  options?.method === "PATCH" && !window.lostParts++ ? Promise.reject(new TypeError("no route")) : real(path, options);"""
"""The first part of an upload does not arrive, as when a network goes away."""


@pytest.mark.parametrize("model", ["small", "embedded"])
def test_a_clip_is_filmed_again_from_the_page(page, model, request, tmp_path):
    name = "tiny" if model == "embedded" else str(request.getfixturevalue("small_svd"))
    settings = Settings(data=tmp_path / "data", model=name, device="cpu", interactive_wait_s=300)
    with Server(settings) as server, worker_thread(settings, "render"), worker_thread(settings, "preview", "estimate"):
        find, until = page.find, page.until
        page.browser.get(server.url)
        find("#key").send_keys("rk_wrong")
        find("#login").submit()
        until(lambda: "valid API key" in find("#said").text)
        find("#key").clear()
        key = server.key()
        find("#key").send_keys(key)
        find("#login").submit()
        until(lambda: find("#drop").is_displayed())

        page.browser.execute_script(LOSE_A_PART)
        find("#file").send_keys(str(write_clip(tmp_path / "walk.mp4")))
        until(lambda: page.picture)
        assert page.browser.execute_script("return window.lostParts") >= 2
        assert "not filmed here" in find("#holes").text
        assert int(find("#space").get_attribute("data-points")) == 64 * 48
        assert page.path == "arc(20deg)"

        # Pulled in 3D: text, sliders and picture follow.
        before, place = page.picture, page.place("end")
        page.pull("end", 40, -30)
        assert page.path.startswith("arc(")
        assert page.path != "arc(20deg)"
        angle = parse_expression(page.path).motions[0].values["angle"]
        assert float(find("[aria-label='arc angle, exactly']").get_attribute("value")) == angle
        assert float(find("[aria-label='arc angle']").get_attribute("value")) == pytest.approx(angle, abs=0.5)
        until(lambda: page.picture != before)
        assert math.dist(page.place("end"), (place[0] + 40, place[1] - 30)) < 12
        # By keys too.
        was = page.path
        find("[data-handle=end]").send_keys(Keys.ARROW_LEFT)
        assert page.path != was
        # Written: the handles follow.
        was = page.place("end")
        page.type_path("truck(-0.2) + zoom(1.2)")
        assert [each.text for each in page.browser.find_elements(By.CSS_SELECTOR, "#motions legend")] == [
            "truck",
            "zoom",
        ]
        until(lambda: page.place("end")[0] < was[0] - 50)
        # A mistake is explained where it was made, and forgotten when it is mended.
        page.type_path("truck(-0.2) + swirl(3)")
        until(lambda: "Column 15: unknown preset 'swirl'" in find("#camera-said").text)
        find("[data-preset=pedestal]").click()
        until(lambda: not find("#camera").get_attribute("aria-invalid"))
        assert page.path == "pedestal(0.1)"
        # Another moment.
        find("#moment").send_keys(Keys.HOME)
        assert find("#moment-said").text.startswith("1 / 6")
        until(lambda: find("#space").get_attribute("data-frame") == "0")

        page.type_path("truck(0.12, ease=linear) + pan(-3deg)")
        Select(find("#quality")).select_by_visible_text("draft")
        Select(find("#anchor")).select_by_value("auto")
        until(lambda: "nothing cropped" in find("#cost").text)
        assert "on average" in find("#cost").text
        page.browser.save_screenshot(str(tmp_path / "shot.png"))
        find("#start").click()
        line = until(lambda: page.browser.find_elements(By.CSS_SELECTOR, "#renders > li"))[0]
        until(lambda: line.get_attribute("data-status") == "completed")
        assert "from the model" in line.text
        line.find_element(By.XPATH, ".//button[text()='Compare']").click()
        until(lambda: page.browser.execute_script("return document.getElementById('both').width") == 64, 60)
        source, result = (wiped(page, share) for share in (100, 0))
        half = wiped(page, 50)
        assert np.abs(source - result).mean() > 3
        np.testing.assert_array_equal(half[:, :30], source[:, :30])
        np.testing.assert_array_equal(half[:, 34:], result[:, 34:])

        with Client(server.url, api_key=key) as client:
            check_downloads(page, client, tmp_path / "downloads")
        page.browser.save_screenshot(str(tmp_path / "compare.png"))
        page.browser.set_window_size(390, 844)
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
        line.find_element(By.XPATH, ".//button[text()='Remove']").click()
        until(lambda: find("#none").is_displayed(), 30)
        serious = [entry["message"] for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
        # The wrong key and the wrong path: the browser notes answers that are no success.
        assert [entry for entry in serious if "401" not in entry and "422" not in entry] == []


def test_many_unfinished_renders_are_kept_up_with(page, tmp_path):
    clip = write_clip(tmp_path / "walk.mp4")
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        upload = client.uploads.create(clip)
        renders = [client.renders.create(upload, f"truck({i / 100})") for i in range(1, 11)]  # and no worker takes them
        find, until = page.find, page.until
        line = {render.id: f"#{render.id}" for render in renders}
        page.browser.get(server.url)
        find("#key").send_keys(server.key())
        find("#login").submit()
        until(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#renders > li")) == 10, 30)

        # The page may still ask for something, with more of them than a browser has connections to one host.
        for render in (renders[9], renders[3]):  # the newest, and one in the middle
            cancel = find(f"{line[render.id]} .acts button:last-child")
            assert cancel.text == "Cancel"
            cancel.send_keys(Keys.ENTER)  # it has the focus when its line changes
            until(lambda css=line[render.id]: find(css).get_attribute("data-status") == "cancelled", 20)
            assert find(f"{line[render.id]} .acts button:last-child").text == "Remove"
        # What happens elsewhere to one that is followed, and to ones that are not.
        client.renders.cancel(renders[8])
        client.renders.cancel(renders[0])
        for render in (renders[8], renders[0]):
            until(lambda css=line[render.id]: find(css).get_attribute("data-status") == "cancelled", 20)
        client.renders.delete(renders[7])
        client.renders.delete(renders[1])
        until(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#renders > li")) == 8, 20)

        database = Database(server.settings.database_url)
        for name in [key.id for key in list_keys(database)]:
            revoke_key(database, name)
        database.close()
        until(lambda: "valid API key" in find("#said").text, 20)
        page.browser.get_log("browser")
        time.sleep(6)  # longer than between two looks
        assert [entry["message"] for entry in page.browser.get_log("browser") if "401" in entry["message"]] == []


def wiped(page: Page, share: int) -> np.ndarray:
    """The wipe's picture of the middle of the film, int [H, W, 4], with `share` per cent of it the source."""
    pixels = page.browser.execute_async_script(
        """const [share, answer] = arguments;
           const set = (id, value) => {
             const it = document.getElementById(id);
             it.value = value;
             it.dispatchEvent(new Event("input"));
           };
           set("seek", 0.5);
           setTimeout(() => {
             set("wipe", share);
             const { width, height } = document.getElementById("both");
             const drawn = document.getElementById("both").getContext("2d").getImageData(0, 0, width, height);
             answer([width, height, [...drawn.data]]);
           }, 1500);""",
        share,
    )
    width, height, values = pixels
    return np.reshape(values, (height, width, 4)).astype(int)


def check_downloads(page: Page, client: Client, folder: Path) -> None:
    """The bundle that the page hands over is the service's, and its camera the path that was drawn."""
    page.find("#downloads button:first-child").click()
    bundle = page.until(lambda: next(folder.glob("rnd_*.zip"), None), 60)
    (render,) = client.renders.list().data
    with zipfile.ZipFile(bundle) as files:
        assert len(files.namelist()) == len(render.content)
        assert {info.filename: info.file_size for info in files.infolist()}["video.mp4"] == render.content[
            "video"
        ].bytes
        camera = json.loads(files.read("camera.json"))
        chosen = json.loads(files.read("config.json"))["config"]
    assert chosen["anchor"]["route"] == "auto"
    page.find("#downloads button:nth-child(3)").click()
    alone = page.until(lambda: next(folder.glob("camera.json"), None), 60)
    assert json.loads(alone.read_text()) == camera
    turned = np.array(camera["frames"][-1]["c2w"])[:3, :3]
    np.testing.assert_allclose(
        turned, parse_expression("pan(-3deg)").resolve(view_of([0.0, 1.0])).c2w[1, :3, :3], atol=1e-9
    )
