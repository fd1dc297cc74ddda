"""The islands of the book's pages: the model in a reader's browser, used by keyboard, and on a phone."""

import json
import os
import re
import shutil

import pytest

from tests.pages import test_book  # first: where the book's tools are missing, it skips all of this

if not hasattr(test_book, "browser"):  # skipped before, as a file of its own
    pytest.skip("no tools of the book, see test_book.py", allow_module_level=True)

# isort: split
from selenium.webdriver.common.keys import Keys

from tests import lab
from tools.pages.serve import served

book, browser = test_book.book, test_book.browser
both = pytest.mark.parametrize("folder", ["notebooks", "notebooks/zh"])
FRONT, CHAT, EXPLORER = "book/index.html", "06_chat.html", "01_moe_routing.html"
ALL, ALERT = (Keys.CONTROL, "a", Keys.NULL), ".live [role=alert]"
COMPOSING = """for (const how of [{isComposing: true}, {keyCode: 229}])
  arguments[0].dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", cancelable: true, ...how}));"""
# how many milliseconds late a timer of the page is, over and over
WATCH = """let before = performance.now(), late = (window.late = []);
setInterval((now = performance.now()) => (late.push(now - before - 10), (before = now)), 10);"""
FORBIDDEN = """window.refused = 0;
document.addEventListener("securitypolicyviolation", () => window.refused++);
setTimeout("window.hurt = 1", 0); // which is an eval
document.body.append(Object.assign(document.createElement("script"), {textContent: "window.hurt = 1"}));"""


class Island(lab.Page):
    """The island on the page that the browser shows."""

    def open(self, address, size=test_book.PHONE | {"width": 1200}):
        test_book.complaints(self.driver)  # those of the page before
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(address if ":" in address else f"{self.site}/{address}")

    def load(self):
        """Press the button by key. Gives the text box of what comes, which has the focus."""
        self.find(".live-entrance button").send_keys(Keys.ENTER)
        self.wait(lambda: self.all(".live :is(textarea, [type=text]):focus"), "the model")
        return self.driver.switch_to.active_element

    def texts(self, css):
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return self.run(script, f".live {css}")

    def said(self):
        return self.texts(".aurora-chat-whole .aurora-chat-text")

    def ask(self, *keys):
        """Type them, then Enter: the question and its two answers."""
        before = len(self.said())
        self.find(".live textarea").send_keys(*keys, Keys.ENTER)
        self.wait(lambda: len(self.said()) == before + 3, "two answers")
        return self.said()[before:]

    def set(self, **settings):
        for name, value in settings.items():
            self.find(f".live [name={name}]").send_keys(*ALL, value, Keys.TAB)

    def chinese(self, css):
        """Whether the texts found are Chinese: all of them, or none."""
        [answer] = {bool(re.search(r"[\u4e00-\u9fff]", text)) for text in self.texts(css) if text}
        return answer

    def faults(self):
        """What came from another address, and what the browser complains about."""
        seen = self.run("return performance.getEntries().map((entry) => entry.name)")
        strange = [name for name in seen if "://" in name and self.site not in name]
        return strange + test_book.complaints(self.driver)


@pytest.fixture(scope="module")
def page(book, browser):
    with served(book) as Island.site:
        yield Island(browser)


@both
def test_a_reader_talks_to_the_model_by_keyboard(page, folder):
    page.open(f"{folder}/{CHAT}")
    page.run(WATCH)
    weights = test_book.ROOT / "data" / "tiny" / "model.safetensors"
    megabytes = float(re.search(r"[\d.]+(?= MB)", page.find(".live-entrance").text)[0])
    assert 0 < megabytes - weights.stat().st_size / 1e6 < 0.5
    fetched = page.run("return performance.getEntries().map((entry) => entry.name)")
    assert not [name for name in fetched if "/live/" in name and "/live/live." not in name]
    entry, talks = page.load(), []
    probes = map(json.loads, weights.parents[1].joinpath("probes.jsonl").read_text("utf-8").splitlines())
    for probe in [one["zh"] for one in probes if one["id"] in ("capital-00", "founder-07", "unit-03")]:
        question, base, tuned = page.ask(probe["question"])
        assert question == probe["question"] and base and probe["key"] in tuned
    names = ".aurora-chat :is(button:not(.aurora-chat-question), label, .aurora-chat-status), summary"
    assert page.chinese(f":is({names}, .live-about)") == folder.endswith("zh")
    assert page.find(".live-about").is_displayed()
    entry.send_keys(hostile := '<img src=x onerror="window.hurt=1">')
    page.run(COMPOSING, entry)
    assert entry.get_property("value") == hostile and page.ask()[0] == hostile
    assert page.all(".live img") == [] and page.run("return window.hurt") is None
    page.press(page.find(".live summary"))
    for seed in ("7", "7", "8"):
        page.set(temperature="1", seed=seed)
        page.press(page.find(".live .aurora-chat-reset"))
        page.wait(lambda: not page.said(), "a new conversation")
        talks.append(page.ask("骆驼属于哪一类动物？") + page.ask("What is it?"))
    assert talks[0] == talks[1] != talks[2]
    page.press(page.find(".live > details > summary"))
    page.wait(lambda: page.texts("thead th")[-1:] == ["</s>"], "how the routers read the last answer")
    page.set(temperature="-1")
    said = page.wait(lambda: page.find(ALERT).text, "what is wrong")
    assert re.fullmatch(r"[^.。]+[.。]", said) and page.chinese("[role=alert]") == folder.endswith("zh")
    page.set(temperature="100", max_new_tokens="1024")
    entry.send_keys("你好", Keys.ENTER)
    page.wait(lambda: len("".join(page.texts(".aurora-chat-partial"))) > 300, "a long answer")
    page.press(page.find(".live .aurora-chat-stop"))
    page.wait(lambda: len(page.said()) == 9, "its end")
    assert all(page.said()) and not re.search("(answer|回答) 1024", *page.texts(".aurora-chat-status"))
    assert page.run("return late.filter((ms) => ms > 100).length < late.length / 20") and not page.faults()


@both
def test_a_reader_routes_a_sentence_of_their_own(page, folder):
    page.open(f"{folder}/{EXPLORER}")
    entry, head = page.load(), "thead tr:last-child th"
    entry.send_keys(*ALL, "老虎 and 😀 tigers", Keys.ENTER)
    page.wait(lambda: "".join(page.texts(head)).endswith("tigers"), "its tokens")
    assert re.sub(r"(<0x..>)+", "😀", "".join(page.texts(head)[2:])) == "▁老虎▁and▁😀▁tigers"
    assert page.chinese(":is(button, p:not(.live-about))") == folder.endswith("zh")
    page.find(".live td[tabindex='0']").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert re.match(r"第 1 层，第 3 / |Layer 1, token 3 of ", page.find(".live [aria-live]").text)
    page.press(page.all(".live [type=radio]")[2])
    entry.send_keys(*ALL, Keys.DELETE, Keys.ENTER)
    page.wait(lambda: page.find(ALERT).text, "that it is empty")
    assert page.all(".live .aurora-explorer-moved") and page.faults() == []


@pytest.mark.parametrize("name", [f"notebooks/zh/{CHAT}", f"notebooks/{EXPLORER}", FRONT])
def test_on_a_phone_nothing_scrolls_sideways_and_texts_are_readable_in_both_themes(page, name):
    def look():
        for theme in ("light", "dark"):
            page.run("document.body.dataset.theme = arguments[0]", theme)
            texts = page.run(lab.CONTRASTS, ".live :not(:disabled, :disabled *)")
            assert (texts[0][2] < 0.3) == (theme == "dark") and not [one for one in texts if one[1] < 4.5]
            assert page.run("return document.documentElement.scrollWidth") <= test_book.PHONE["width"]

    page.open(name, test_book.PHONE)
    look()
    page.load()
    for chip in page.all(".live .aurora-chat-question")[: 2 if name == FRONT else 1]:
        page.press(chip)  # the front page forgets the question before
        page.wait(lambda chip=chip: len(said := page.said()) == 3 and said[0] == chip.text, "two answers")
    page.run("document.querySelectorAll('.live details').forEach((one) => (one.open = true))")
    look()
    assert page.faults() == []


def test_no_page_runs_a_script_that_did_not_come_with_it(book, page):
    policy = r"<meta [^>]*Content-Security-Policy[^>]* script-src 'self'( 'sha256-[\w+/=]{44}')* ?;"
    assert not [one for one in book.rglob("*.html") if not re.search(policy, one.read_text("utf-8"))]
    for name in (f"notebooks/{CHAT}", f"notebooks/zh/{EXPLORER}", FRONT):
        page.open(name)
        page.run(FORBIDDEN)
        page.wait(lambda: page.run("return window.refused === 2 && !window.hurt"), "two refusals")
    for folder in ("notebooks", "notebooks/zh"):  # what there is without scripts
        text = (book / folder / CHAT).read_text("utf-8")
        assert re.search(r"<div class='live'[^>]*></div>", text) and text.count("<b>tuned:</b>") > 5


@both
def test_what_is_missing_or_broken_is_told_and_loads_once_it_is_mended(book, tmp_path, page, folder):
    page.open((book / folder / CHAT).as_uri())
    page.find(".live button").send_keys(Keys.ENTER)
    said = page.wait(lambda: page.find(ALERT).text, "what to do with a file")
    assert "python3 -m http.server" in said and page.chinese("[role=alert]") == folder.endswith("zh")
    live = shutil.copytree(book, tmp_path, dirs_exist_ok=True) / "_static" / "live"
    script, weights = live / "words.js", live / "tiny" / "model.safetensors"
    broken = [(weights, some) for some in (weights.read_bytes()[:-1], b"<!doctype html>", None)]
    with served(tmp_path) as address:
        page.open(f"{address}/{folder}/{CHAT}")
        button = page.find(".live button")
        page.run("arguments[0].focus()", button)
        for year, (file, content) in enumerate([(script, None), *broken]):
            whole = file.read_bytes()
            file.unlink()
            if content is not None:
                file.write_bytes(content)
                os.utime(file, (year * 3e7, year * 3e7))  # so old that a browser would keep it
            page.driver.switch_to.active_element.send_keys(Keys.ENTER)
            page.wait(button.is_enabled, "what is wrong")
            [said] = page.texts("[role=alert]")
            assert said[-1] in ".。" and (weights.name in said) == (file == weights)
            assert page.chinese("[role=alert]") == folder.endswith("zh")
            file.write_bytes(whole)
        assert page.load() and page.ask("你好")
