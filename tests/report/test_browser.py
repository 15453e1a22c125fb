"""The page in a headless browser, at desktop and phone width.

Skipped where Chromium or Selenium is missing.
"""

import shutil
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"
)
PAGE = "results/tiny_test/report/report.html"
WIDTHS = {"desktop": 1200, "phone": 390}


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=WIDTHS)
def page(request, browser, reported):
    """The report, opened at one of `WIDTHS`."""
    metrics = {
        "width": WIDTHS[request.param],
        "height": 900,
        "deviceScaleFactor": 1,
        "mobile": request.param == "phone",
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((Path(reported) / PAGE).as_uri())
    return browser


def column(page, table, index):
    rows = page.find_elements("css selector", f"#{table} tbody tr")
    return page.execute_script(
        "return arguments[0].map(row => row.cells[arguments[1]].innerText)", rows, index
    )


def change(page, name, value, event):
    """Give an element a value, as a user would, and let the page know."""
    script = (
        "const [name, value, event] = arguments; const element = document.getElementById(name);"
        "element.value = value; element.dispatchEvent(new Event(event))"
    )
    page.execute_script(script, name, value, event)


def test_nothing_goes_wrong_and_nothing_sticks_out(page):
    assert page.get_log("browser") == []
    width = page.execute_script("return document.documentElement.clientWidth")
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    broken = (
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    )
    assert page.execute_script(broken) == []


def test_tables_sort_both_ways(page):
    first = column(page, "table-layers", 2)
    assert [float(text) for text in first] == sorted(map(float, first))  # worst first
    button = page.find_element("css selector", "#table-layers th:nth-child(3) button")
    page.execute_script("arguments[0].click(); arguments[0].click()", button)
    assert column(page, "table-layers", 2) == first[::-1]
    name = page.find_element("css selector", "#table-layers th:nth-child(1) button")
    page.execute_script("arguments[0].click()", name)
    names = column(page, "table-layers", 0)
    assert names[0] == "body.0.conv1"
    assert names == sorted(names)


def test_missing_figures_sort_last(page):
    headers = [h.text for h in page.find_elements("css selector", "#table-validation th")]
    index = next(i for i, text in enumerate(headers) if text.startswith("self-PSNR"))
    button = page.find_element(
        "css selector", f"#table-validation th:nth-child({index + 1}) button"
    )
    for _ in range(2):
        page.execute_script("arguments[0].click()", button)
        assert column(page, "table-validation", index)[-1] == "–"


def test_slider_moves_and_shows_what_is_chosen(page):
    over = page.find_element("css selector", ".stage .over")
    knob = page.find_element("css selector", ".stage input")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", knob)
    before = over.value_of_css_property("clip-path")
    webdriver.ActionChains(page).move_to_element_with_offset(knob, 60, 0).click().perform()
    after = over.value_of_css_property("clip-path")
    assert before == "inset(0px 50% 0px 0px)"
    assert after != before
    shown = over.get_attribute("src")
    change(page, "left", "static", "change")
    assert over.get_attribute("src") != shown
    row = page.find_elements("css selector", ".choice")[1]
    page.execute_script("arguments[0].click()", row)
    expected = row.find_element("css selector", "[data-column=static]").get_attribute("src")
    assert over.get_attribute("src") == expected
    assert page.find_element("css selector", ".slider .chosen").text == row.get_attribute(
        "data-label"
    )


def test_classes_lie_over_the_picture(page):
    overlay = page.find_element("css selector", ".overlay")
    change(page, "opacity", 80, "input")
    assert overlay.value_of_css_property("opacity") == "0.8"
    assert overlay.size["width"] >= page.find_element("css selector", ".map").size["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, reported, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get((Path(reported) / PAGE).as_uri())
    body = browser.find_element("tag name", "body")
    paper, ink = (
        _brightness(body.value_of_css_property(key)) for key in ("background-color", "color")
    )
    assert paper - ink > 150 if scheme == "light" else ink - paper > 150


def _brightness(colour):
    return sum(int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 3
