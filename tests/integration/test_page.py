"""The page in a real browser, by mouse and by keyboard, on a desk and on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")
pytest.importorskip("selenium", reason="needs selenium")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from support.live import small_bundle
from support.service import Running, running

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)",
    ),
]
SECRET = "k" * 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("page") / "shop")


@pytest.fixture(scope="module")
def shop(bundle: Path) -> Iterator[Running]:
    with running(bundle) as found:
        yield found


class Browser:
    """Chromium without a window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, selector: str) -> list[Any]:
        return [e for e in self.driver.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()]

    def one(self, selector: str) -> Any:
        return self.until(lambda: (self.all(selector) or [None])[0])

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def until(self, condition: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        waiting = WebDriverWait(self.driver, 15, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: condition())

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    @property
    def focus(self) -> str:
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    # no other server can be reached: the page has to work offline
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def test_search_look_and_recommend_by_keyboard_alone(shop: Running, browser: Browser) -> None:
    browser.driver.get(shop.address)
    browser.one("#found li")
    browser.press("/")
    browser.until(lambda: browser.focus == "search")
    title = shop.service.present.catalogue.search("", 1)[0].title
    browser.press(title.split()[0].lower())
    browser.until(lambda: title in browser.texts("#found .name"))
    browser.press(Keys.TAB)
    browser.press(Keys.ENTER)
    browser.until(lambda: len(browser.all(".path > li")) == 3)
    item = next(i for i in shop.service.present.catalogue if i.title == browser.one("#item h3").text)
    assert [int(node) for node in browser.texts(".path .node")] == list(item.identifier)
    browser.press(Keys.TAB)
    browser.press(Keys.ENTER)
    assert browser.until(lambda: browser.texts("#basket")) == ["1"]

    browser.driver.get(f"{shop.address}/#recommend")
    browser.until(lambda: len(browser.all("#recommended > li")) == 10)
    expected = shop.post("/v1/recommend", {"history": [item.key], "exclude": [item.key]}).json()["items"]
    assert browser.texts("#recommended .name") == [one["title"] for one in expected]
    assert len(browser.all("#recommended meter")) == 30
    assert browser.complaints() == []


def test_filters_and_texts(shop: Running, browser: Browser) -> None:
    browser.driver.get(f"{shop.address}/#recommend")
    browser.one("#history-text").send_keys("blue cup", Keys.ENTER)
    browser.until(lambda: len(browser.all("#recommended > li")) == 10)
    category = shop.service.present.catalogue.search("", 1)[0].categories[-1]
    browser.one("#category").send_keys(category)
    inside = {i.title for i in shop.service.present.catalogue if category in i.categories}
    browser.until(
        lambda: browser.texts("#recommended .name") and set(browser.texts("#recommended .name")) <= inside
    )
    browser.one("#clear").click()
    browser.until(lambda: "Put something" in browser.one("#recommended").text)
    assert browser.complaints() == []


def test_adding_shows_where_it_lands_and_titles_bring_no_markup(shop: Running, browser: Browser) -> None:
    browser.driver.get(f"{shop.address}/#add")
    title = "<img src=x onerror=alert(1)> LAMP"
    browser.one("#new-key").send_keys("<b>1</b>")
    browser.one("#new-title").send_keys(title)
    browser.one("#try").click()
    browser.until(lambda: len(browser.all("#landed .path > li")) == 3)
    assert shop.service.present.catalogue.get("<b>1</b>") is None
    browser.one("#add-form .strong").click()
    browser.until(lambda: "never change" in browser.one("#landed").text)
    assert title in browser.one("#landed h3").text
    browser.one("#landed button").click()
    browser.until(lambda: browser.texts("#item h3") and browser.texts("#item h3")[0] == title)
    assert browser.all("#item img") == []
    shop.http.delete("/v1/items/%3Cb%3E1%3C%2Fb%3E")
    browser.driver.get(f"{shop.address}/#health")
    browser.until(lambda: len(browser.all("#health-body .bars")) == 3)
    assert browser.complaints() == []


def test_on_a_phone_nothing_is_wider_than_the_screen(shop: Running, browser: Browser) -> None:
    size = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    key = shop.service.present.catalogue.search("", 1)[0].key
    for view, sign in ((f"explore/{key}", ".path"), ("recommend", "#history-text"), ("add", "#new-key"),
                       ("health", ".bars")):  # fmt: skip
        browser.driver.get(f"{shop.address}/#{view}")
        browser.one(sign)
        width = browser.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360, view
        for button in browser.all("nav a, main button"):
            assert button.size["height"] >= 32, button.text


def test_every_control_has_a_name(shop: Running, browser: Browser) -> None:
    key = shop.service.present.catalogue.search("", 1)[0].key
    for view in (f"explore/{key}", "recommend", "add", "health"):
        browser.driver.get(f"{shop.address}/#{view}")
        browser.until(lambda: browser.all("main h2"))
        for element in browser.all("button, input, select, textarea, a, meter"):
            assert element.accessible_name, (view, element.get_attribute("outerHTML"))


def test_a_key_is_asked_for(bundle: Path, browser: Browser, tmp_path: Path) -> None:
    with running(bundle, [(SECRET, "read")], store=str(tmp_path / "keyed.sqlite")) as closed:
        browser.driver.get(closed.address)
        browser.one("#key").send_keys("wrong", Keys.ENTER)
        browser.until(lambda: "not known" in browser.one("#message").text)
        browser.one("#key").send_keys(Keys.CONTROL, "a")
        browser.press(SECRET, Keys.ENTER)
        browser.one("#found li")
        assert browser.all("#key-form") == []


def test_newcomers_are_marked(bundle: Path, tmp_path: Path, browser: Browser) -> None:
    with running(bundle, newcomers=0.2, store=str(tmp_path / "store.sqlite")) as shop:
        new = [{"key": f"new-{i}", "title": f"PURPLE ZEBRA LAMP {i}"} for i in range(4)]
        assert shop.post("/v1/items", {"items": new}).status_code == 201
        key = shop.service.present.catalogue.search("", 1)[0].key
        browser.driver.get(f"{shop.address}/#explore/{key}")
        browser.until(lambda: len(browser.all(".path > li")) == 3)
        assert "Shop" in browser.one("#item dl").text, "its categories"
        browser.one("#item p button").click()
        browser.driver.get(f"{shop.address}/#recommend")
        browser.until(lambda: len(browser.all("#recommended > li")) == 10)
        asked = {"history": [key], "exclude": [key]}
        expected = shop.post("/v1/recommend", asked).json()["items"]
        marked = [item["title"] for item in expected if item["newcomer"]]
        assert marked
        lines = browser.all("#recommended > li")
        shown = [
            line.find_element(By.CSS_SELECTOR, ".name").text for line in lines if "chosen by its" in line.text
        ]
        assert [title.removesuffix("new").strip() for title in shown] == marked
        assert browser.texts("#recommended .new") == ["new"] * len(marked)
        browser.driver.save_screenshot(os.environ.get("SCREENSHOT", str(tmp_path / "newcomers.png")))
        assert browser.complaints() == []
