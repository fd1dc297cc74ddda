"""The explorer shows what a trace says, and says what cannot be routed."""

import re

import pytest

from aurora_lib import routing
from aurora_lib.routing import baselines, explorer
from tests import lab

CELL = """
from aurora_lib import model, routing
from aurora_lib.course import DATA
base, tokenizer = model.load_model(DATA / "tiny", device="cpu"), model.load_tokenizer(DATA / "tiny")
models = {"base": base, "random": routing.baselines.random_router(base)}
routing.explorer.widget(models, tokenizer, "Who wrote Hamlet?")
"""


@pytest.fixture(scope="module")
def models(model):
    base = routing.WithoutAdapter(model)
    return {"base": base, "tuned": model, "random": baselines.random_router(base)}


def parts(box):
    """The widgets of the explorer by their names."""
    (entry, _), *others = box.children[0].children, *box.children[1:]
    names = ("entry", "layer", "model", "note", "tokens", "loads")
    return dict(zip(names, (entry, *others), strict=True))


def numbers(page):
    """The expert below each token of a page."""
    return [int(number) for number in re.findall(r"<sub>(\d+)</sub>", page)]


def test_enter_routes_and_layer_and_model_change_what_is_shown(models, tokenizer):
    text, box = "法国的首都是哪里？", parts(explorer.widget(models, tokenizer, "Who wrote Hamlet?"))
    box["entry"].value = text
    for name in models:
        for layer in (0, 2):
            box["model"].value, box["layer"].value = name, layer
            trace = routing.trace(models[name], tokenizer, text)
            assert numbers(box["tokens"].value) == trace.experts[layer, :, 0].tolist()
            assert f"{routing.expert_load(trace)[layer].max():.1%}" in box["loads"].value
    assert "another first expert than with base" in box["loads"].value and box["note"].value == ""


@pytest.mark.parametrize("text, said", [("", "The text is empty"), ("长" * 3000, "cut it into pieces")])
def test_what_cannot_be_routed_is_said_in_a_sentence_and_the_picture_stays(text, said, models, tokenizer):
    box = parts(explorer.widget(models, tokenizer, "Who wrote Hamlet?"))
    before = box["tokens"].value
    box["entry"].value = text
    assert said in box["note"].value and box["tokens"].value == before
    box["layer"].value = 1  # the last text that worked is still there
    assert "layer 1" in box["tokens"].value and box["note"].value == ""


def test_typed_and_named_html_is_shown_and_never_run(models, tokenizer):
    text = "<s><img src=x onerror=alert(1)>"
    names = {"<b>base</b>": models["base"], "<i>b</i>": models["tuned"]}
    box = parts(explorer.widget(names, tokenizer, text))
    box["model"].value = "<i>b</i>"
    for page in (box["tokens"].value, box["loads"].value, explorer.to_html(names, tokenizer, text)):
        assert not re.search("<(img|b|i|s)[ >]", page)


def test_the_static_page_shows_every_model_and_none_is_refused(models, tokenizer):
    page = explorer.to_html(models, tokenizer, "法国的首都", layer=1)
    traces = [routing.trace(model, tokenizer, "法国的首都") for model in models.values()]
    assert numbers(page) == [expert for trace in traces for expert in trace.experts[1, :, 0].tolist()]
    assert all(f"<h4>{name}</h4>" in page for name in models) and "layer 1" in page
    with pytest.raises(ValueError, match="no model to explore"):
        explorer.widget({}, tokenizer)


@pytest.mark.skipif(lab.missing() is not None, reason=f"browser test: {lab.missing()}")
def test_a_reader_in_jupyterlab_types_chinese_and_changes_layer_and_model_by_keyboard(tmp_path):
    from selenium.webdriver.common.keys import Keys

    with lab.notebook(tmp_path, CELL) as page:

        def after(*keys, part="tokens"):
            """What `part` shows once keys, pressed where the focus is, have changed it."""
            css = f".routing-{part} .widget-html-content"
            before = page.html(css)
            page.driver.switch_to.active_element.send_keys(*keys)
            page.wait(lambda: page.html(css) != before, f"a change of {css}")
            return page.html(css)

        page.find(".routing-entry input").click()
        chinese = after(Keys.CONTROL, "a", Keys.NULL, "法国的首都是哪里？龘", Keys.ENTER)
        assert "法" in chinese and "&lt;0xE9&gt;" in chinese
        page.find(".routing-layer input").click()
        deeper = after(Keys.ARROW_UP)
        assert "layer 1" in deeper and numbers(deeper) != numbers(chinese)
        random = after(Keys.TAB, Keys.TAB, Keys.SPACE)
        assert page.driver.switch_to.active_element.text == "random" and numbers(random) != numbers(deeper)
        page.find(".routing-entry input").click()
        assert "text is empty" in after(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE, Keys.ENTER, part="note")
        print("screenshot:", page.screenshot(tmp_path / "explorer.png"))
