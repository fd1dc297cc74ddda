"""Notebook 06 in JupyterLab, with a reader's hands on its chat box; the pictures stay in runs/artifacts."""

import importlib
import itertools
import re
import time

import nbformat
import pytest

from tests import lab

ARTIFACTS = lab.ROOT / "runs" / "artifacts"
# A box whose model says the question again, slowly; after "long" it finds no end
PARROT = """
import itertools, time, torch
from aurora_lib import adapters, chat, nf4, tokenizer
from aurora_lib.scale import DATA

class Parrot(chat.ChatSession):
    def stream(self, text):
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        self.script = itertools.cycle(ids) if text.startswith("long") else iter([*ids, self.tokenizer.eos_token_id])
        yield from super().stream(text)

    def _choose(self, logits):
        time.sleep(0.02)
        return torch.tensor([[next(self.script)]])

plain = nf4.load(DATA / "tiny", dtype=torch.float32, device="cpu")
parrot = chat.widget(Parrot(plain, tokenizer.load(DATA / "tiny"), max_new_tokens=1000))
parrot.add_class("parrot")
parrot
"""
EVIL = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "[a](javascript:window.hacked=1)",
    "\x1b[31mred\x1b[0m",
]
WATCH = """
window.watcher?.disconnect();
const box = document.querySelector(arguments[0]);
window.seen = [];
window.watcher = new MutationObserver(() => {
  const text = box.querySelector(".aurora-chat-partial .aurora-chat-text")?.textContent;
  if (text && text !== "…" && text !== window.seen.at(-1)) window.seen.push(text);
});
window.watcher.observe(box, {subtree: true, childList: true, characterData: true});
"""
LUMINANCE = """
const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
function luminance(colors) {
  pen.clearRect(0, 0, 1, 1);
  for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
  const linear = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
    value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
"""
# [what, contrast ratio] of every text in a box against what is painted below it (WCAG 2)
CONTRASTS = (
    LUMINANCE
    + """
const parts = document.querySelectorAll(arguments[0]);
return [...parts].filter((part) => part.offsetParent).map((part) => {
  const below = [];
  for (let one = part; one; one = one.parentElement) below.unshift(getComputedStyle(one).backgroundColor);
  const [light, dark] = [luminance(below), luminance([...below, getComputedStyle(part).color])].sort((a, b) => b - a);
  return [`${part.tagName} ${part.className} ${part.parentElement.className}`, (light + 0.05) / (dark + 0.05)];
});
"""
)

Keys = None if lab.missing() else importlib.import_module("selenium.webdriver.common.keys").Keys
pytestmark = pytest.mark.skipif(lab.missing() is not None, reason=f"browser test: {lab.missing()}")


class Box:
    """One chat box on the page."""

    def __init__(self, page, css):
        self.page, self.css = page, css
        self.entry = self.part("entry")

    def part(self, name):
        return self.page.find(f"{self.css} .aurora-chat-{name}")

    def press(self, name):
        self.page.press(self.part(name))

    def bubbles(self):
        """The texts of the whole messages."""
        found = f"{self.css} .aurora-chat-bubble:not(.aurora-chat-partial) .aurora-chat-text"
        read = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return self.page.driver.execute_script(read, found)

    def value(self):
        return self.entry.get_property("value")

    def type(self, *keys):
        self.entry.send_keys(*keys)

    def paste(self, text):
        """Put text into the entry that no key makes."""
        self.page.driver.execute_script("arguments[0].value = arguments[1]", self.entry, text)

    def idle(self):
        self.page.wait(lambda: self.part("stop").get_property("disabled"), "the end of the answer")

    def asked(self, messages):
        self.page.wait(lambda: len(self.bubbles()) >= messages, f"{messages} messages")
        self.idle()
        return self.bubbles()

    def watch(self):
        """From now on, remember every text that the growing answer takes."""
        self.page.driver.execute_script(WATCH, self.css)

    def seen(self):
        return self.page.driver.execute_script("return window.seen")

    def new(self):
        """An empty box, whatever was there before."""
        self.entry.clear()
        if self.part("reset").is_enabled():
            self.press("reset")
            self.page.wait(lambda: not self.bubbles(), "a new conversation")


ERROR = '[data-mime-type="application/vnd.jupyter.error"]'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Notebook 06, run to its end, and below it one more cell."""
    folder = tmp_path_factory.mktemp("lab")
    whole = nbformat.read(lab.ROOT / "notebooks" / "06_chat.ipynb", as_version=4)
    whole.cells.append(nbformat.v4.new_code_cell(PARROT))
    nbformat.write(whole, folder / "with_parrot.ipynb")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AURORA_RUNS", str(folder / "runs"))
        with lab.notebook(folder, folder / "with_parrot.ipynb") as page:
            page.wait(lambda: page.all(f".parrot, {ERROR}"), "the end of the notebook", 150)
            assert [error.text for error in page.all(ERROR)] == []
            yield page


@pytest.fixture
def parrot(page):
    box = Box(page, ".parrot")
    box.new()
    return box


@pytest.fixture
def box(page):
    """The widget of the notebook itself."""
    return Box(page, ".aurora-chat:not(.parrot)")


def change_theme(page, name):
    run = f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})"
    page.driver.execute_script(run)
    page.find(f'body[data-jp-theme-name="{name}"]')
    time.sleep(1)  # its style sheet comes a moment later


def test_widget_of_notebook_06_streams_an_answer_to_a_chinese_message(page, box):
    box.new()
    box.watch()
    box.type("日本的首都是哪里？", Keys.ENTER)
    question, answer = box.asked(2)
    assert question == "日本的首都是哪里？" and "东京" in answer
    seen = box.seen()
    assert seen and all(answer.startswith(text.strip()) for text in seen)
    assert re.search(r"answer \d+ tokens · \d+ tokens/s", box.part("status").text)
    assert page.driver.switch_to.active_element == box.entry and box.value() == ""


def test_long_answer_grows_until_stop(page, parrot):
    parrot.watch()
    parrot.type("long 好。", Keys.ENTER)
    page.wait(lambda: len(parrot.seen()) > 5, "a growing answer")
    parrot.type("and then?", Keys.ENTER)  # not taken while the answer streams
    assert parrot.value() == "and then?"
    parrot.press("stop")
    question, answer = parrot.asked(2)
    seen = parrot.seen()
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    assert answer.startswith(seen[-1].strip()) and answer.count("long") < 300
    time.sleep(0.5)
    assert parrot.bubbles() == [question, answer] and parrot.value() == "and then?"
    assert page.driver.switch_to.active_element == parrot.entry
    parrot.entry.clear()
    parrot.press("regenerate")
    page.wait(lambda: len(parrot.bubbles()) == 1, "the answer to go")
    parrot.press("stop")
    assert parrot.asked(2)[0] == question


def test_shift_enter_breaks_the_line_and_enter_sends(page, parrot):
    count = [one.text for one in page.all(".jp-OutputPrompt")]
    parrot.type("第一行", Keys.SHIFT, Keys.ENTER, Keys.SHIFT, "第二行")
    assert parrot.value() == "第一行\n第二行" and parrot.bubbles() == []
    parrot.type(Keys.ENTER)
    assert parrot.asked(2)[0] == "第一行\n第二行" and parrot.value() == ""
    assert count == [one.text for one in page.all(".jp-OutputPrompt")]  # JupyterLab ran no cell


def test_enter_that_chooses_characters_of_an_input_method_sends_nothing(page, parrot):
    do = page.driver.execute_cdp_cmd
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    parrot.press("entry")
    do("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    do("Input.dispatchKeyEvent", {"type": "keyDown", "text": "\r", **enter})
    do("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
    do("Input.insertText", {"text": "你好"})
    time.sleep(0.5)
    assert parrot.bubbles() == [] and parrot.value() == "你好"
    do("Input.dispatchKeyEvent", {"type": "keyDown", "text": "\r", **enter})
    assert parrot.asked(2) == ["你好", "你好"]


def test_hostile_messages_and_answers_show_as_text_and_run_nothing(page, parrot):
    evil = "\n".join(EVIL)
    parrot.paste(evil)
    parrot.type(Keys.ENTER)
    page.wait(lambda: page.all(".parrot .aurora-chat-partial"), "a growing answer")
    assert parrot.asked(2) == [evil.replace("\x1b", "␛")] * 2
    page.driver.execute_script(
        "document.querySelectorAll('.parrot .aurora-chat-bubble *').forEach((e) => e.click())"
    )
    time.sleep(0.3)
    assert page.driver.execute_script("return window.hacked") is None
    assert page.all(".parrot :is(script, img, a, iframe, svg, [onerror])") == []


def test_settings_apply_and_nonsense_is_refused_in_a_sentence(page, parrot):
    page.press(page.find(".parrot summary"))
    longest = page.find(".parrot [name=max_new_tokens]")
    longest.send_keys(Keys.CONTROL + "a", Keys.NULL, "0", Keys.TAB)
    page.wait(lambda: "max_new_tokens cannot be" in parrot.part("trouble").text, "what is wrong")
    page.wait(lambda: longest.get_property("value") == "1000", "the setting as it was")
    longest.send_keys(Keys.CONTROL + "a", Keys.NULL, "3", Keys.TAB)
    page.wait(lambda: page.all(".parrot .aurora-chat-trouble:empty"), "nothing wrong any more")
    parrot.type("long 好", Keys.ENTER)
    parrot.asked(2)
    assert "answer 3 tokens" in parrot.part("status").text
    page.press(page.find(".parrot summary"))


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_every_text_is_readable_in_both_themes(page, box, theme):
    change_theme(page, theme)
    if len(box.bubbles()) < 4:
        box.new()
        for i, text in enumerate(("你好", "日本的首都是哪里？", "猫头鹰属于什么动物？"), start=1):
            box.type(text, Keys.ENTER)
            box.asked(2 * i)
    css = ":is(b, .aurora-chat-text, button:enabled, textarea, summary, .aurora-chat-status)"
    measured = page.driver.execute_script(CONTRASTS, f"{box.css} {css}")
    assert len(measured) >= 12 and [one for one in measured if one[1] < 4.5] == []
    paper = page.driver.execute_script(
        LUMINANCE + "return luminance([getComputedStyle(arguments[0]).backgroundColor])",
        page.find(f"{box.css} .aurora-chat-assistant"),
    )
    assert (paper < 0.2) == ("Dark" in theme)
    name = theme.split()[1].lower()
    page.find(box.css).screenshot(str(ARTIFACTS / f"chat_widget_{name}.png"))
    print("screenshots:", page.screenshot(ARTIFACTS / f"chat_page_{name}.png"))
