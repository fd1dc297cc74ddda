"""Pictures show the numbers that they are given, and texts as text."""

import matplotlib.pyplot as plt
import pytest
import torch

from aurora_lib import routing
from aurora_lib.routing import pictures, statistics
from tests.routing.made import CONFIGS, build, clustered

plt.switch_backend("Agg")


def test_tokens_are_escaped_and_chinese_readable(tokenizer):
    trace = routing.trace(build(CONFIGS["mixtral"]), tokenizer, "混合专家 <b>two</b> 龘")
    page = pictures.tokens_to_html(trace, 2)
    assert f"家<sub>{trace.experts[2, trace.tokens.index('家'), 0]}</sub>" in page
    assert "&lt;0xE9&gt;" in page and "a byte of 龘" in page and "&lt;s&gt;" in page
    assert "<b>" not in page and "<s>" not in page
    with pytest.raises(ValueError, match="choose 0 to 2"):
        pictures.tokens_to_html(trace, 3)


def test_bytes_name_the_character_they_are_of():
    whole = ["▁", "<0xE9>", "<0xBE>", "<0x98>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    broken = ["<0xE9>", "a", "<0x0A>", "▁<0xE9><0xBE>", "<0x98>"]
    assert pictures.byte_characters(whole + broken) == ["", *"龘龘龘😀😀😀😀", "", "", "", *"龘龘"]


def test_a_load_is_shown_in_numbers_under_an_escaped_title():
    page = pictures.load_to_html(torch.tensor([0.25, 0.75]), "<b>")
    assert "75.0%" in page and "balanced = 50.0%" in page and "&lt;b&gt;" in page and "<b>" not in page
    axes = pictures.plot_load(torch.tensor([[0.1, 0.9], [0.5, 0.5]]))
    assert [text.get_text() for text in axes.texts] == ["10", "90", "50", "50"]
    many, page = torch.full((2, 64), 1 / 64), pictures.load_to_html(torch.full((64,), 1 / 64), "")
    assert page.count("<table>") == 4 and page.count("1.6%") == 65
    axes = pictures.plot_load(many)
    assert not axes.texts and len(axes.get_xticks()) == 16


def test_groups_stand_side_by_side_with_their_intervals():
    trace, languages = clustered(0, gain=2.0)
    loads = statistics.load_by_group(trace, languages)
    figure = pictures.plot_groups(trace, languages, layers=[0])
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars == pytest.approx([100 * share for load in loads.values() for share in load[0, 0].tolist()])
    tops = [part.get_segments()[0][1][1] for part in figure.axes[0].collections]
    assert tops == pytest.approx([100 * load[2, 0, 0].item() for load in loads.values()], rel=1e-4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zh (12 texts)", "en (12 texts)"]
