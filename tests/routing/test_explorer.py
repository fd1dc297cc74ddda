"""The explorer shows what a trace says, with a kernel and without, and says what cannot be routed."""

import colorsys
import json
import re

import pytest

from aurora_lib import routing
from aurora_lib.routing import baselines, explorer
from tests import lab
from tests.routing.made import CONFIGS, WithoutAdapter, build

TEXTS = ["法国的首都？龘", "Who wrote Hamlet?", "</script><i>x</i><img src=x onerror=hacked=1>"]
CELL = """from aurora_lib import model, routing
from aurora_lib.course import DATA
base, tokenizer = model.load_model(DATA / "tiny", device="cpu"), model.load_tokenizer(DATA / "tiny")
routing.explorer.Explorer({"a": base, "b": routing.baselines.random_router(base)}, tokenizer, ["Who?"])"""


@pytest.fixture(scope="module")
def models(model):
    base = WithoutAdapter(model)
    return {"base": base, "tuned": model, TEXTS[2]: baselines.random_router(base)}


def moved_cells(data):
    sets = [[dict(cell).keys() for row in model["cells"] for cell in row] for model in data["models"]]
    return [sum(a != b for a, b in zip(sets[0], own, strict=True)) for own in sets]


def test_the_grid_is_the_trace_and_counts_what_moved(models, tokenizer):
    for text in (*TEXTS, "好龘龘"):
        data = explorer.grid(models, tokenizer, text)
        traces = [routing.trace_many(model, tokenizer, [text]) for model in models.values()]
        assert (data["tokens"], data["layers"]) == (traces[0].tokens, traces[0].layers)
        before = traces[0].experts.flatten(0, 1).tolist()
        for trace, made in zip(traces, data["models"], strict=True):
            cells = [cell for row in made["cells"] for cell in row]
            assert [[e for e, _ in cell] for cell in cells] == trace.experts.flatten(0, 1).tolist()
            weights = (100 * trace.weights.flatten()).tolist()
            assert [w for cell in cells for _, w in cell] == pytest.approx(weights, abs=0.006)
            moved = sum(e not in dict(cell) for old, cell in zip(before, cells, strict=True) for e in old)
            assert made["moved"] == f"{moved} of {len(weights)} slots moved from base to {made['name']}."
    assert moved > 10 and data["runs"][-2:] == [("龘", 3), ("龘", 3)]
    other = explorer.grid({"a": build(CONFIGS["qwen3"])}, tokenizer, "龘")
    assert other["layers"] == [0, 2] and [len(cell) for cell in other["models"][0]["cells"][1]] == [3] * 5
    pieces = ["<0xE9>", "a", "<0x0A>", "▁<0xE9><0xBE>", "<0x98>", "<0xE2>", "<0x80>", "<0x8D>", "<0x41>"]
    assert explorer.runs(pieces) == [("", 1)] * 3 + [("龘", 2), ("\\u200d", 3), ("A", 1)]


@pytest.mark.parametrize("text, said", [("", "text is empty"), ("长" * 300, "has room for 256: cut it")])
def test_what_cannot_be_shown_is_said_and_the_picture_stays(text, said, models, tokenizer):
    shown = explorer.Explorer(models, tokenizer, TEXTS[:2])
    shown.route(text)
    assert said in shown.trouble and shown.data["text"] == shown.texts[0]
    shown.route("x")
    assert shown.trouble == "" and shown.data["text"] == "x"
    for wrong in ({}, {"a": models["base"], "b": build(CONFIGS["mixtral"])}):
        with pytest.raises(ValueError, match=r"pass a model|b has other routed layers or experts than a"):
            explorer.Explorer(wrong, tokenizer, TEXTS)


def test_without_scripts_the_page_says_every_number_and_runs_nothing(models, tokenizer):
    page = explorer.Explorer(models, tokenizer, TEXTS)._repr_mimebundle_()[0]["text/html"]
    tables, kept = re.search(r'-page">(.*?)<script type="application/json">(.*?)</script>', page).groups()
    assert set(re.findall(r"<(\w+)", tables)) == {"p", "table", "tr", "th", "td", "br", "hr"}
    grids = json.loads(kept)
    assert "<" not in kept and [grid["text"] for grid in grids] == TEXTS
    layers = (layer for grid in grids for layer in zip(*(m["cells"] for m in grid["models"]), strict=True))
    cells = (cell for layer in layers for model in layer for cell in model)
    numbers = ["<br>".join(f"{e:.0f}:&nbsp;{w:.0f}%" for e, w in cell) for cell in cells]
    assert re.findall("<td>(?:≠<br>)?(.*?)</td>", tables) == numbers
    assert tables.count("<td>≠") == sum(sum(moved_cells(grid)) for grid in grids) > 0


def test_every_expert_can_be_read_on_light_and_on_dark_pages():
    def luminance(hue, light, saturation):
        rgb = colorsys.hls_to_rgb(int(hue) / 360, int(light) / 100, saturation)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(part * c for part, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    form = r"color:light-dark.#000,#fff.;background:light-dark.hsl.(.+) 75% (.+)%.,hsl.(.+) 60% (.+)%.."
    for style in explorer.styles(8) + explorer.styles(64):
        hue, light, same, dark = re.fullmatch(form, style).groups()
        paper, dark = luminance(hue, light, 0.75) + 0.05, luminance(same, dark, 0.6) + 0.05
        assert paper / 0.05 >= 4.5 and 1.05 / dark >= 4.5  # under black and under white


@pytest.mark.skipif(lab.missing() is not None, reason=f"browser test: {lab.missing()}")
def test_a_reader_in_jupyterlab_and_one_without_a_kernel_use_it_by_keyboard(models, tokenizer, tmp_path):
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        return [page.driver.switch_to.active_element.send_keys(key) for key in keys]

    with lab.notebook(tmp_path, CELL) as page:
        page.press(page.find(".aurora-explorer input"))
        press(Keys.CONTROL + "a", "法国的首都龘", Keys.ENTER)
        assert page.find("[colspan='3']").text == "龘" and len(page.all(".aurora-explorer")) == 1
        press(*[Keys.TAB] * 3, *[Keys.ARROW_RIGHT] * 2)  # past button and example to the views
        trouble, summary, details = page.all(".aurora-explorer p")
        assert re.match("[1-9][0-9]* of 80 slots moved from a to b", summary.text)
        press(Keys.TAB, Keys.ARROW_DOWN, *[Keys.ARROW_LEFT] * 2, *[Keys.ARROW_RIGHT] * 12)
        said = r"Layer 1, token 10 of 10: <0x98> \(a byte of 龘\)( · (a|b):( expert \d .+%,?){2}){2}"
        assert re.match(said, details.text)
        page.press(page.find(".aurora-explorer input"))
        press(Keys.CONTROL + "a", Keys.DELETE, Keys.ENTER)
        page.wait(lambda: "text is empty" in trouble.text and " of 80 " in summary.text, "what is wrong")
        html = explorer.Explorer(models, tokenizer, TEXTS).to_html()
        (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{html}", "utf-8")
        page.driver.switch_to.new_window("tab")
        page.driver.get((tmp_path / "page.html").as_uri())
        for number, text in enumerate(TEXTS):
            page.find("select").send_keys(Keys.HOME, *[Keys.ARROW_DOWN] * number)
            page.press(page.all("[type=radio]")[4])  # the difference of the random one
            moved = moved_cells(explorer.grid(models, tokenizer, text))[2]
            assert len(page.all(".aurora-explorer-moved")) == moved
        assert page.all("i, img") == [] and page.run("return window.hacked") is None
        for theme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": theme}]
            page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            texts = page.run(lab.CONTRASTS, "p:not(:empty), th, td, label, select, td span")
            assert len(texts) > 50 and [text for text in texts if text[1] < 4.5] == []
