"""The book: complete, whole without a network, and readable in a browser, on a phone too.

It needs what `make book` installs, which is not part of a normal set-up: without that, these tests skip.
"""

import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

TOOLS = ("sphinx", "myst_nb", "furo", "jieba", "latex2mathml", "selenium")
if absent := [name for name in TOOLS if importlib.util.find_spec(name) is None]:
    pytest.skip(f"not installed: {', '.join(absent)}; make book brings them", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

from tests import lab  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = [path for folder in ("", "zh/") for path in sorted(ROOT.glob(f"notebooks/{folder}0*.ipynb"))]
# the page's width, what it fetched, the width of each formula, and what is cut off: it reaches past the right
# edge, and nothing around it, below the article, can be scrolled
LOOK = """
const scrolls = (box) => ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
const cut = [...document.querySelectorAll("article *")].filter((box) => {
  if (box.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (; box && box.tagName !== "ARTICLE"; box = box.parentElement) if (scrolls(box)) return false;
  return true;
}).map((box) => `${box.tagName}.${box.className} is cut off`);
return [document.documentElement.scrollWidth, performance.getEntriesByType("resource").map(e => e.name),
        [...document.querySelectorAll("math")].map(m => m.getBoundingClientRect().width), cut];
"""
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}


class Page(HTMLParser):
    """`ids`; `links` of <a>; `loaded`, what the browser fetches itself; `inputs`, code cells; `language`."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loaded, self.inputs, self.language = set(), set(), set(), 0, ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        self.inputs += "cell_input" in values.get("class", "").split()
        if tag == "html":
            self.language = values.get("lang", "")
        if "href" in values:
            (self.links if tag == "a" else self.loaded).add(values["href"])
        self.loaded |= {values[name] for name in ("src", "srcset", "poster", "data") if values.get(name)}
        self.loaded |= set(re.findall(r"url\(['\"]?([^'\")]+)", values.get("style", "")))


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """The folder of the book, built once a run; a warning, as for a link to no page, fails the build."""
    out = tmp_path_factory.getbasetemp() / "book"
    if out.exists():  # test_islands.py reads it too
        return out / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "book"]
    command += ["-d", out / "doctrees", ".", out / "html"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out / "html"


@pytest.fixture(scope="module")
def pages(book) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(book.rglob("*.html")) if "_static" not in path.parts}


def test_notebooks_are_pages_in_their_language_with_all_their_cells_tables_and_plots(book, pages):
    for notebook in NOTEBOOKS:
        page = pages[book / notebook.relative_to(ROOT).with_suffix(".html")]
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        tables = sum("".join(data.get("text/html", "")).count('class="dataframe"') for data in shown)
        plots = {"".join(data["image/png"]) for data in shown if "image/png" in data}
        assert page.inputs == sum(cell["cell_type"] == "code" for cell in cells), notebook
        assert page.text.count('class="dataframe"') == tables, notebook
        assert len([src for src in page.loaded if "_images/" in src]) >= len(plots), notebook
        language, twin = ("zh-CN", "..") if notebook.parent.name == "zh" else ("en", "zh")
        assert page.language == language, notebook
        assert f'<p class="other-language"><a href="{twin}/{notebook.stem}.html"' in page.text, notebook


def test_no_link_inside_the_book_is_broken(book, pages):
    broken, followed = [], 0
    for path, page in pages.items():
        for parts in map(urlsplit, filter(None, page.links | page.loaded)):
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            lost = target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].ids
            if lost or not target.is_file():
                broken.append(f"{path.relative_to(book)}: {parts.geturl()}")
    assert broken == [] and followed > 1000


def test_pages_and_styles_ask_no_other_machine_for_anything(book, pages):
    styles = {path: path.read_text(encoding="utf-8") for path in book.rglob("*.css")}
    for path, page in pages.items():
        parts = [urlsplit(link) for link in page.loaded]
        assert not [part for part in parts if part.netloc or part.scheme not in ("", "data")], path
        styles[path] = " ".join(re.findall(r"<style.*?</style>", page.text, re.S))
    assert not [path for path, text in styles.items() if re.search(r"@import|url\(['\"]?(https?:)?//", text)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if reason := lab.missing():
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = lab.chromium()
    for flag in (*lab.FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(lab.shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    yield driver
    driver.quit()


def complaints(browser) -> list[str]:
    return [said["message"] for said in browser.get_log("browser") if said["level"] != "INFO"]


def test_every_page_opens_on_a_phone_without_errors_or_sideways_scrolling(book, pages, browser):
    faults, formulas = [], 0
    for path in pages:
        browser.get(path.as_uri())
        width, fetched, drawn, cut_off = browser.execute_script(LOOK)
        found = complaints(browser) + cut_off
        found += [f"asks for {url}" for url in fetched if not url.startswith(("file:", "data:"))]
        found += [f"{width} px wide"] if width > PHONE["width"] else []
        found += ["a formula is not drawn" for size in drawn if size < 3]
        faults += [f"{path.relative_to(book)}: {fault}" for fault in found]
        formulas += len(drawn)
    assert not faults, "\n".join(faults)
    assert formulas >= 10


def test_search_finds_words_of_both_languages_without_a_server(book, browser):
    chinese = "notebooks/zh/01_moe_routing.html"
    asked = {"quantization": "notebooks/03_qlora_memory.html", "路由器": chinese, "路由器专家": chinese}
    for words, page in asked.items():
        browser.get(f"{(book / 'search.html').as_uri()}?q={quote(words)}")
        found = ("css selector", f"#search-results li a[href*='{page}']")
        WebDriverWait(browser, 20).until(lambda driver, found=found: driver.find_elements(*found), words)
        assert not complaints(browser), words
