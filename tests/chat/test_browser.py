"""Notebook 06 in JupyterLab, with a reader's hands on its chat box; the pictures stay in runs/artifacts."""

import importlib
import re

import jupytext
import pytest

from tests import lab

pytestmark = pytest.mark.skipif(lab.missing() is not None, reason=f"browser test: {lab.missing()}")
Keys = None if lab.missing() else importlib.import_module("selenium.webdriver.common.keys").Keys

ARTIFACTS = lab.ROOT / "runs" / "artifacts"
# Below notebook 06, boxes of one and of two models that say the question again, slowly; "long" over and over
PARROT = """
import functools, time
from tests.chat.speakers import Scripted

class Parrot(chat.ChatSession):
    def stream(self, text):
        pause = functools.partial(time.sleep, 0.02)
        slow = [part for token in self.tokenizer.tokenize(text) for part in (pause, token)]
        Scripted(self, *slow * (300 if text.startswith("long") else 1))
        yield from super().stream(text)

one, two, three = (Parrot(base, tokenizer, max_new_tokens=1000) for _ in range(3))
for name, sessions in {"parrot": one, "twins": {"<b>one</b>": two, "two": three}}.items():
    display(chat.ChatBox(sessions, questions=["<i>你好</i>"]).add_class(name))
"""
EVIL = """<script>window.hacked=1</script>
<img src=x onerror=window.hacked=1>
[a](javascript:window.hacked=1)
\x1b[31mred\x1b[0m"""
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'


def picture(element, name):
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    element.screenshot(str(ARTIFACTS / f"chat_widget_{name}.png"))


class Box:
    """One chat box on the page."""

    def __init__(self, page, css):
        self.page, self.css = page, css
        self.entry = self.part("entry")

    def part(self, name):
        return self.page.find(f"{self.css} .aurora-chat-{name}")

    def press(self, name):
        self.page.press(self.part(name))

    def type(self, *keys):
        self.entry.send_keys(*keys)

    def value(self):
        return self.entry.get_property("value")

    def bubbles(self):
        """The texts of the whole messages."""
        found = f"{self.css} .aurora-chat-whole .aurora-chat-text"
        script = "return Array.from(document.querySelectorAll(arguments[0]), (bubble) => bubble.textContent)"
        return self.page.run(script, found)

    def growing(self):
        """What has been said so far of an answer; empty without one."""
        parts = self.page.all(f"{self.css} .aurora-chat-partial .aurora-chat-text")
        return "".join(part.text for part in parts)

    def answered(self, messages):
        """The messages, once there are that many and the answer has ended."""
        self.page.wait(lambda: len(self.bubbles()) >= messages, f"{messages} messages")
        self.page.wait(lambda: self.part("stop").get_property("disabled"), "the end of the answer")
        return self.bubbles()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Notebook 06, run to its end, and below it one more cell."""
    folder = tmp_path_factory.mktemp("lab")
    cells = jupytext.read(lab.ROOT / "notebooks" / "text" / "06_chat.py").cells
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AURORA_RUNS", str(folder / "runs"))
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        with lab.notebook(folder, *code, PARROT) as page:
            page.wait(lambda: page.all(f".twins, {ERROR}"), "the end of the notebook", 150)
            assert [error.text for error in page.all(ERROR)] == []
            yield page


@pytest.fixture
def box(page):
    """The box of the notebook itself."""
    return Box(page, ".aurora-chat:not(.parrot, .twins)")


@pytest.fixture(params=[".parrot"])
def parrot(page, request):
    """A box below, empty, whatever was there before."""
    box = Box(page, request.param)
    box.entry.clear()
    if box.part("reset").is_enabled():
        box.press("reset")
        page.wait(lambda: not box.bubbles(), "a new conversation")
    return box


def test_box_of_notebook_06_answers_a_chinese_message_in_two_columns(page, box):
    box.type("日本的首都是哪里？", Keys.ENTER)
    question, base, tuned = box.answered(18)[15:]
    assert question == "日本的首都是哪里？" and "Tokyo" in base and "东京" in tuned
    assert [one.text for one in page.all(f"{box.css} b")[-3:]] == ["You", "base", "tuned"]
    assert re.search(r"base: .*answer \d+ tokens · \d+ tokens/s.*\ntuned: ", box.part("status").text)
    assert page.driver.switch_to.active_element == box.entry and box.value() == ""
    *_, left, right = page.all(f"{box.css} .aurora-chat-bubble")
    assert left.rect["x"] < right.rect["x"] and left.rect["y"] == right.rect["y"]
    page.run("arguments[0].style.width = '360px'", page.find(box.css))
    assert left.rect["x"] == right.rect["x"] and left.rect["y"] < right.rect["y"]
    picture(page.find(box.css), "narrow")
    page.run("arguments[0].style.width = ''", page.find(box.css))


def test_suggestion_is_asked_and_what_was_said_copied_even_where_the_clipboard_is_refused(page, box):
    before = len(box.bubbles())
    page.all(f"{box.css} .aurora-chat-question")[-1].send_keys(Keys.ENTER)
    question, base, tuned = box.answered(before + 3)[before:]
    assert question == "骆驼属于哪一类动物？" and base and tuned
    page.run("document.addEventListener('copy', () => (window.copied = getSelection().toString()))")
    *_, left, right = page.all(f"{box.css} .aurora-chat-copy")
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    right.send_keys(Keys.ENTER)
    assert page.run("return window.copied") == tuned and right.accessible_name == "Copy: tuned"
    page.run("navigator.clipboard.writeText = () => Promise.reject()")
    left.send_keys(Keys.SPACE)
    page.wait(lambda: page.run("return window.copied") == base and left.text == "Copied", "the copy")


def test_long_answer_grows_until_stop_and_can_be_given_anew(page, parrot):
    parrot.type("long 好。", Keys.ENTER)
    seen = [page.wait(lambda n=n: len(text := parrot.growing()) > n and text, "growth") for n in (5, 40)]
    parrot.type("and then?", Keys.ENTER)  # not taken while the answer streams
    parrot.press("stop")
    question, answer = parrot.answered(2)
    assert question == "long 好。" and seen[1].startswith(seen[0]) and answer.startswith(seen[1].strip())
    assert answer.count("long") < 300
    assert parrot.value() == "and then?" and page.driver.switch_to.active_element == parrot.entry
    parrot.press("regenerate")
    page.wait(lambda: len(parrot.bubbles()) == 1, "the answer to go")
    parrot.press("stop")
    assert parrot.answered(2)[0] == question


def test_shift_enter_breaks_the_line_and_enter_sends(page, parrot):
    count = [one.text for one in page.all(".jp-OutputPrompt")]
    parrot.type("第一行", Keys.SHIFT, Keys.ENTER, Keys.SHIFT, "第二行")
    assert parrot.value() == "第一行\n第二行" and parrot.bubbles() == []
    parrot.type(Keys.ENTER)
    assert parrot.answered(2)[0] == "第一行\n第二行" and parrot.value() == ""
    assert count == [one.text for one in page.all(".jp-OutputPrompt")]  # JupyterLab ran no cell


def test_enter_that_chooses_characters_of_an_input_method_sends_nothing(page, parrot):
    do = page.driver.execute_cdp_cmd
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    parrot.press("entry")
    do("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    do("Input.dispatchKeyEvent", {"type": "keyDown", "text": "\r", **enter})
    do("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
    do("Input.insertText", {"text": "你好"})
    assert parrot.value() == "你好"
    do("Input.dispatchKeyEvent", {"type": "keyDown", "text": "\r", **enter})
    assert parrot.answered(2) == ["你好", "你好"]


@pytest.mark.parametrize("parrot", [".parrot", ".twins"], indirect=True)
def test_hostile_messages_and_answers_show_as_text_and_run_nothing(page, parrot):
    page.run("arguments[0].value = arguments[1]", parrot.entry, EVIL)  # no key makes an escape code
    parrot.type(Keys.ENTER)
    shown, bubbles = EVIL.replace("\x1b", "␛"), {".parrot": 2, ".twins": 3}[parrot.css]
    assert parrot.answered(bubbles) == [shown] * bubbles and parrot.part("question").text == "<i>你好</i>"
    page.run(
        "document.querySelectorAll(`${arguments[0]} .aurora-chat-bubble *`).forEach((e) => e.click())",
        parrot.css,
    )
    assert page.all(f"{parrot.css} :is(script, img, a, i, b b, iframe, svg, [onerror])") == []
    assert page.run("return window.hacked") is None


def test_settings_apply_and_nonsense_is_refused_in_a_sentence(page, parrot):
    page.press(page.find(".parrot summary"))
    longest = page.find(".parrot [name=max_new_tokens]")
    longest.send_keys(Keys.CONTROL + "a", Keys.NULL, "0", Keys.TAB)
    page.wait(lambda: "max_new_tokens cannot be" in parrot.part("trouble").text, "what is wrong")
    assert longest.get_property("value") == "1000"
    longest.send_keys(Keys.CONTROL + "a", Keys.NULL, "3", Keys.TAB)
    page.wait(lambda: page.all(".parrot .aurora-chat-trouble:empty"), "nothing wrong any more")
    parrot.type("long 好", Keys.ENTER)
    parrot.answered(2)
    assert "answer 3 tokens" in parrot.part("status").text and longest.get_property("value") == "3"
    page.press(page.find(".parrot summary"))


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_every_text_is_readable_in_both_themes(page, box, theme):
    page.run(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    css = ":is(b, .aurora-chat-text, button:enabled, textarea, summary, .aurora-chat-status)"

    def measured():
        found = page.run(lab.CONTRASTS, f"{box.css} {css}")
        return all((paper < 0.3) == (theme == "Dark") for _, _, paper in found) and found

    texts = page.wait(measured, f"the theme {theme}")  # its style sheet comes a moment after its name
    assert len(texts) >= 10 and [text for text in texts if text[1] < 4.5] == []
    picture(page.find(box.css), theme.lower())
