"""The islands of the book's pages: the model itself, in a reader's browser, used by keyboard and on a phone."""

import json
import re
import shutil
from urllib.parse import urlsplit

import pytest

from tests.pages.test_book import PHONE, ROOT, book, browser, complaints, pages  # noqa: F401; first: it may skip

# isort: split
from selenium.webdriver.common.keys import Keys

from tests import lab
from tools.pages.serve import served

FRONT, CHAT, EXPLORER = "book/index.html", "06_chat.html", "01_moe_routing.html"
FOLDERS = {"en": "notebooks", "zh": "notebooks/zh"}
HAN = re.compile(r"[\u4e00-\u9fff]")
COMPOSING = """
for (const how of [{ isComposing: true }, { keyCode: 229 }])
  arguments[0].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...how }));
"""
# the longest time that the page has been too busy to answer, in milliseconds
WATCH = """
let before = performance.now();
window.slowest = 0;
setInterval(() => {
  window.slowest = Math.max(window.slowest, performance.now() - before - 10);
  before = performance.now();
}, 10);
"""
FORBIDDEN = """
window.breaches = 0;
document.addEventListener("securitypolicyviolation", () => window.breaches++);
setTimeout("window.hurt = 1", 0);
const script = document.createElement("script");
script.textContent = "window.hurt = 1";
document.body.append(script);
"""


class Island(lab.Page):
    """The page that the browser shows, and the island on it."""

    def open(self, address):
        self.driver.get(address)
        return self

    def load(self):
        """Press the button by keyboard, and wait for the widget, which has the focus in its text box."""
        self.find(".live button").send_keys(Keys.ENTER)
        self.wait(lambda: self.run("return document.activeElement.matches('.live :is(textarea, [type=text])')"), "it")
        return self.driver.switch_to.active_element

    def part(self, name):
        return self.find(f".live .aurora-chat-{name}")

    def bubbles(self):
        found = ".live .aurora-chat-whole .aurora-chat-text"
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", found)

    def answered(self, messages):
        """The last question and its two answers, once they are there."""
        self.wait(lambda: len(self.bubbles()) == messages, f"{messages} messages")
        return self.bubbles()[-3:]

    def ask(self, text):
        before = len(self.bubbles())
        self.part("entry").send_keys(text, Keys.ENTER)
        return self.answered(before + 3)

    def set(self, name, value):
        self.find(f".live [name={name}]").send_keys(Keys.CONTROL + "a", Keys.NULL, value, Keys.TAB)

    def reset(self):
        self.press(self.part("reset"))
        self.wait(lambda: not self.bubbles(), "a new conversation")

    def strangers(self):
        """Whatever came from elsewhere, and what the browser complains about."""
        seen = self.run("return performance.getEntries().map((entry) => entry.name)")
        own = urlsplit(self.driver.current_url).netloc
        return [name for name in seen if urlsplit(name).netloc not in ("", own)] + complaints(self.driver)


@pytest.fixture(scope="module")
def site(book):  # noqa: F811
    with served(book) as address:
        yield address


@pytest.fixture
def page(browser):  # noqa: F811
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    complaints(browser)  # the ones before
    return Island(browser)


@pytest.mark.parametrize("language", FOLDERS)
def test_a_reader_talks_to_the_model_by_keyboard(site, page, language):
    page.open(f"{site}/{FOLDERS[language]}/{CHAT}").run(WATCH)
    size = sum(path.stat().st_size for name in ("tiny", "tiny_adapter") for path in (ROOT / "data" / name).iterdir())
    megabytes, entrance = size / 1e6, page.find(".live-entrance")
    assert abs(float(re.search(r"[\d.]+(?= MB)", entrance.text)[0]) - megabytes) < 0.1
    fetched = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if "/live/" in name and not re.search(r"live\.(js|css)$", name)] == []
    assert page.load() == page.part("entry")
    probes = map(json.loads, (ROOT / "data" / "probes.jsonl").read_text(encoding="utf-8").splitlines())
    for probe in [one["zh"] for one in probes if one["id"] in ("capital-00", "founder-07", "unit-03")]:
        question, base, tuned = page.ask(probe["question"])
        assert question == probe["question"] and base and probe["key"] in tuned and HAN.match(tuned)
    buttons = page.all(".live :is(button:not(.aurora-chat-question), summary)")
    assert len(buttons) > 8 and {bool(HAN.search(one.text)) for one in buttons} == {language == "zh"}
    hostile = '<img src=x onerror="window.hurt=1">'
    page.part("entry").send_keys(hostile)
    page.run(COMPOSING, page.part("entry"))
    assert page.part("entry").get_property("value") == hostile
    assert page.ask("")[0] == hostile
    assert page.all(".live img") == [] and page.run("return window.hurt") is None
    assert page.run("return window.slowest") < 100 and page.strangers() == []


@pytest.mark.parametrize("language", FOLDERS)
def test_settings_hold_nonsense_is_refused_and_a_long_answer_can_be_stopped(site, page, language):
    page.open(f"{site}/{FOLDERS[language]}/{CHAT}").load()
    page.press(page.find(".live summary"))
    said = []
    for seed in ("7", "7", "8"):
        page.set("temperature", "1")
        page.set("seed", seed)
        page.reset() if said else None
        said.append(page.ask("骆驼属于哪一类动物？") + page.ask("What is it?"))
    assert said[0] == said[1] != said[2]
    page.set("temperature", "hot" if language == "en" else "-1")
    trouble = page.wait(lambda: page.part("trouble").text, "what is wrong")
    assert re.fullmatch(r"[^.。]+[.。]", trouble) and bool(HAN.search(trouble)) == (language == "zh")
    page.reset()
    page.set("temperature", "100")
    page.set("max_new_tokens", "1024")
    page.run(WATCH)
    page.part("entry").send_keys("你好", Keys.ENTER)
    grown = lambda: [one.text for one in page.all(".live .aurora-chat-partial .aurora-chat-text")]  # noqa: E731
    page.wait(lambda: sum(map(len, grown())) > 200, "a long answer")
    page.press(page.part("stop"))
    assert all(page.answered(3)) and not re.search(r"\b1024 (tokens ·|个 token ·)", page.part("status").text)
    assert page.run("return window.slowest") < 100 and page.strangers() == []


@pytest.mark.parametrize("language", FOLDERS)
def test_a_reader_routes_a_sentence_of_their_own(site, page, language):
    entry = page.open(f"{site}/{FOLDERS[language]}/{EXPLORER}").load()
    text = "老虎 and 😀 tigers"
    entry.send_keys(Keys.CONTROL + "a", text, Keys.ENTER)
    tokens = "return [...document.querySelectorAll('.live thead tr:last-child th')].map((th) => th.textContent)"
    heads = page.wait(lambda: "tigers" in "".join(heads := page.run(tokens)) and heads, "the tokens")
    written = re.sub(r"(<0x..>)+", "😀", "".join(heads[2:])).replace("▁", " ")
    assert written == f" {text}" and bool(HAN.search(page.find(".live p:nth-of-type(2)").text)) == (language == "zh")
    page.find(".live td[tabindex='0']").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    place = "const at = document.activeElement; return [at.parentElement.rowIndex, at.cellIndex];"
    row, column = page.run(place)
    assert row - len(page.all(".live thead tr")) == 1 and column == 3
    assert re.search(r"第 1 层，第 3 /|Layer 1, token 3 of", page.find(".live [aria-live]").text)
    page.press(page.all(".live [type=radio]")[2])
    assert page.all(".live .aurora-explorer-moved")
    entry.send_keys(Keys.CONTROL + "a", Keys.DELETE, Keys.ENTER)
    page.wait(lambda: page.find(".live [role=alert]").text, "that it is empty")
    assert page.strangers() == []


def test_the_front_page_answers_one_question_at_a_time(site, page):
    page.open(f"{site}/{FRONT}").load()
    for chip in page.all(".live .aurora-chat-question"):
        page.press(chip)
        page.wait(lambda chip=chip: len(said := page.bubbles()) == 3 and said[0] == chip.text, "two answers")
    assert HAN.match(page.bubbles()[-1]) and page.strangers() == []


@pytest.mark.parametrize("name", [f"notebooks/zh/{CHAT}", f"notebooks/{EXPLORER}", FRONT])
def test_on_a_phone_nothing_scrolls_sideways_and_every_text_is_readable_in_both_themes(site, page, name):
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)

    def look():
        for theme in ("light", "dark"):
            page.run("document.body.dataset.theme = arguments[0]", theme)
            texts = page.run(lab.CONTRASTS, ".live :not(:disabled, :disabled *)")
            assert texts and [text for text in texts if text[1] < 4.5] == [], theme
            assert all((paper < 0.3) == (theme == "dark") for *_, paper in texts if len(texts) < 9)
            assert page.run("return document.documentElement.scrollWidth") <= PHONE["width"], theme

    page.open(f"{site}/{name}")
    look()
    page.load()
    if chips := page.all(".live .aurora-chat-question"):
        page.press(chips[0])
        page.answered(3)
        for opened in page.all(".live summary"):
            page.press(opened)
    look()
    assert page.strangers() == []


def test_no_page_runs_a_script_that_did_not_come_with_it(site, book, pages, page):  # noqa: F811
    for path in book.rglob("*.html"):
        found = re.search(r"<meta [^>]*Content-Security-Policy[^>]*>", path.read_text(encoding="utf-8"))
        scripts = re.search(r"default-src 'none'; script-src ([^;]*);", found[0])[1]
        assert re.fullmatch(r"'self'( 'sha256-[\w+/=]{44}')*\s*", scripts), path
    for name in (f"notebooks/{CHAT}", f"notebooks/{EXPLORER}", FRONT):
        page.open(f"{site}/{name}").run(FORBIDDEN)
        page.wait(lambda: page.run("return window.breaches") == 2, "two refusals")
        assert page.run("return window.hurt") is None


@pytest.mark.parametrize("language", FOLDERS)
def test_a_broken_model_is_one_sentence_and_loads_once_it_is_mended(book, tmp_path, page, language):  # noqa: F811
    shutil.copytree(book, tmp_path / "book")
    weights = tmp_path / "book" / "_static" / "live" / "tiny" / "model.safetensors"
    whole = weights.read_bytes()
    with served(tmp_path / "book") as address:
        page.open(f"{address}/{FOLDERS[language]}/{CHAT}")
        page.find(".live button").send_keys(Keys.ENTER)
        ...
