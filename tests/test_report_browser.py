"""The page in a real browser, with the network off: it draws, filters, hides, fits, and is ready soon."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from result_folders import compare_folder, decode_folder, drift_folder

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
webdriver = pytest.importorskip("selenium.webdriver")
Service = pytest.importorskip("selenium.webdriver.chrome.service").Service
By = pytest.importorskip("selenium.webdriver.common.by").By

write_report = pytest.importorskip("ra_bench.report.writing").write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER,
    reason="needs Chromium and its driver (Debian: apt install chromium chromium-driver)",
)
READY = (
    "const d = document.documentElement.dataset; return d.ready || d.failed && 'failed: ' + d.failed || ''"
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    here = tmp_path_factory.mktemp("report")
    folders = [
        compare_folder(
            here / "honest", indexes=("ra", "ivf", "hnsw", "hnsw@lift", "an-index-with-a-long-name:leaf=64")
        ),
        compare_folder(here / "random", split="random"),
        decode_folder(here / "decode"),
        drift_folder(here / "drift"),
    ]
    write_report(folders, here / "report.html")
    return here / "report.html"


def load(browser, page, width=1440, theme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.execute_cdp_cmd("Network.enable", {})
    off = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", off)
    browser.get(page.as_uri())
    return until(lambda: browser.execute_script(READY), 60)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def errors(browser):
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


COUNT_COLOURS = """
const [image, done] = arguments, picture = new Image();
picture.onload = () => {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width; canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data, counts = {};
  for (let i = 0; i < data.length; i += 4) {
    const [red, green, blue] = data.slice(i, i + 3);
    if (Math.max(red, green, blue) - Math.min(red, green, blue) < 60) continue;
    const key = [red >> 4, green >> 4, blue >> 4].join();
    counts[key] = (counts[key] ?? 0) + 1;
  }
  done(Object.values(counts).filter((count) => count > 20).length);
};
picture.src = "data:image/png;base64," + image;
"""
FIND_CUT = """
const out = [];
for (const chart of document.querySelectorAll(".chart:not([hidden])")) {
  const name = chart.closest("figure").id;
  if (chart.getBoundingClientRect().right > innerWidth + 1) out.push(name);
  for (const text of chart.querySelectorAll("svg text")) {
    const at = text.getBoundingClientRect(), svg = text.closest("svg").getBoundingClientRect();
    const cut = at.right > svg.right + 2 || at.left < svg.left - 2;
    const shown = at.width && getComputedStyle(text).opacity !== "0"; // labels without room stay, unseen
    if (shown && cut) out.push(name + ": " + text.textContent);
  }
}
return out;
"""
BOX = """
const box = document.querySelector(arguments[0]).getBoundingClientRect();
return { x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height, scale: 1 };
"""


def colours(browser, name):
    """How many vivid colours the pixels of a chart show."""
    clip = browser.execute_script(BOX, f"#{name} .chart")
    asked = {"clip": clip, "captureBeyondViewport": True}
    image = browser.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
    return browser.execute_async_script(COUNT_COLOURS, image)


def marks(browser, name):
    return browser.find_elements(By.CSS_SELECTOR, f"#{name} .chart .mark-symbol.role-mark path")


def choose(browser, label, text):
    select = browser.find_element(By.XPATH, f"//label[text()='{label}']/select")
    select.find_element(By.XPATH, f".//option[text()='{text}']").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_chart_draws_and_nothing_is_cut_off(browser, page, width, theme) -> None:
    assert not load(browser, page, width, theme).startswith("failed")
    charts = browser.find_elements(By.CSS_SELECTOR, ".chart:not([hidden])")
    names = [chart.find_element(By.XPATH, "..").get_attribute("id") for chart in charts]

    assert len(names) >= 17
    assert {"against-reference", "insert-drift", "drift-tokens"} <= set(names)
    for name in names:
        assert colours(browser, name) >= 1, name
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    cut = browser.execute_script(FIND_CUT)
    assert cut == []
    assert errors(browser) == []


def test_hover_shows_the_settings(browser, page) -> None:
    load(browser, page)
    mark = marks(browser, "quality-cost")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)
    webdriver.ActionChains(browser).move_to_element(mark).perform()

    text = until(lambda: browser.find_element(By.ID, "vg-tooltip-element").text)

    assert "effort" in text
    assert "recall@k, 95 % interval" in text
    assert "by query" in text
    assert "ef=" in text


def test_a_filter_changes_what_the_charts_show(browser, page) -> None:
    load(browser, page)
    heights = lambda: [mark.get_attribute("transform") for mark in marks(browser, "quality-cost")]  # noqa: E731
    before = heights()
    table = browser.find_element(By.CSS_SELECTOR, "#equal-recall table").text

    choose(browser, "k", "100")

    until(lambda: heights() != before)
    assert browser.find_element(By.CSS_SELECTOR, "#equal-recall table").text != table
    choose(browser, "Quality", "output error")
    until(lambda: "output error" in browser.find_element(By.CSS_SELECTOR, "#quality-cost .chart").text)
    assert errors(browser) == []


def test_drift_of_another_data_set_leaves_the_others_where_they_are(browser, tmp_path) -> None:
    folders = [compare_folder(tmp_path / "run", ks=(10,)), drift_folder(tmp_path / "drift", data="other")]
    write_report(folders, tmp_path / "report.html")
    load(browser, tmp_path / "report.html")
    assert marks(browser, "quality-cost")
    assert "No rows" in browser.find_element(By.CSS_SELECTOR, "#insert-drift .empty").text

    choose(browser, "Data set", "other")

    until(lambda: marks(browser, "insert-drift"))
    before = [mark.get_attribute("transform") for mark in marks(browser, "insert-drift")]
    choose(browser, "KV head", "layer 0, KV head 1")
    until(lambda: [mark.get_attribute("transform") for mark in marks(browser, "insert-drift")] != before)
    assert errors(browser) == []


def test_the_keyboard_hides_an_index_and_brings_it_back(browser, page) -> None:
    load(browser, page)
    before = len(marks(browser, "quality-cost"))
    button = browser.find_element(By.CSS_SELECTOR, "#quality-cost .legend button[data-index='ivf']")
    browser.execute_script("arguments[0].focus()", button)

    browser.switch_to.active_element.send_keys(webdriver.Keys.SPACE)

    until(lambda: len(marks(browser, "quality-cost")) < before)
    focused = browser.switch_to.active_element
    assert focused.get_attribute("data-index") == "ivf"
    assert focused.get_attribute("aria-pressed") == "false"
    focused.send_keys(webdriver.Keys.SPACE)
    until(lambda: len(marks(browser, "quality-cost")) == before)


def test_a_click_on_a_mark_hides_its_index(browser, page) -> None:
    load(browser, page)
    before = len(marks(browser, "quality-cost"))
    mark = marks(browser, "quality-cost")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)

    webdriver.ActionChains(browser).move_to_element(mark).click().perform()

    until(lambda: len(marks(browser, "quality-cost")) < before)
    assert "hidden" in browser.find_element(By.ID, "status").get_attribute("textContent")


def test_the_numbers_open_and_sort(browser, page) -> None:
    load(browser, page)
    browser.execute_script("document.querySelector('#memory .table details').open = true")
    button = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#memory th[data-field='index'] button"))[0]
    browser.execute_script("arguments[0].click()", button)

    rows = browser.find_elements(By.CSS_SELECTOR, "#memory tbody td:first-child")

    names = [row.get_attribute("textContent") for row in rows]
    assert names == sorted(names)
    assert "ra" in names


def test_a_name_with_markup_is_shown_as_text(browser, tmp_path) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    folder = compare_folder(tmp_path / "run", indexes=("ra", evil), layers=1, kv_heads=1, ks=(10,))
    write_report([folder], tmp_path / "report.html")

    load(browser, tmp_path / "report.html")

    labels = browser.find_elements(By.CSS_SELECTOR, "#quality-cost .legend button")
    assert evil in [label.text for label in labels]
    assert browser.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    assert "owned" not in browser.title


@pytest.mark.slow
def test_fifty_thousand_rows_are_under_six_megabytes_and_ready_in_three_seconds(browser, tmp_path) -> None:
    indexes = [f"method{number:02}" for number in range(22)]
    folder = compare_folder(
        tmp_path / "run", indexes=indexes, layers=14, kv_heads=8, ks=(100, 1000), settings=10, noise=0.2
    )
    started = time.perf_counter()
    write_report([folder], tmp_path / "report.html")
    wrote_s = time.perf_counter() - started

    ready_ms = min(int(load(browser, tmp_path / "report.html")) for _ in range(3))

    megabytes = (tmp_path / "report.html").stat().st_size / 1e6
    print(f"50,000 rows: {megabytes:.1f} MB, written in {wrote_s:.1f} s, ready in {ready_ms} ms")
    assert megabytes < 6
    assert ready_ms < 3000
