"""Pictures show the numbers that they are given."""

import io

import matplotlib.pyplot as plt
import PIL.Image
import pytest
import torch

from aurora_lib.routing import pictures, statistics
from tests.routing.made import clustered


def test_a_load_is_shown_in_numbers():
    axes = pictures.plot_load(torch.tensor([[0.1, 0.9], [0.5, 0.5]]))
    assert [text.get_text() for text in axes.texts] == ["10", "90", "50", "50"]
    axes = pictures.plot_load(torch.full((2, 64), 1 / 64))
    assert not axes.texts and len(axes.get_xticks()) == 16


def test_groups_stand_side_by_side_with_their_intervals():
    trace, languages = clustered(0, gain=2.0)
    figure = pictures.plot_groups(trace, languages, layers=[0])
    loads = statistics.by_text(trace, statistics.chosen(trace)) / 2
    loads = [statistics.interval(part)[:, 0] for part in (loads[:12], loads[12:])]
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars == pytest.approx([100 * share for load in loads for share in load[0].tolist()])
    tops = [part.get_segments()[0][1][1] for part in figure.axes[0].collections]
    assert tops == pytest.approx([100 * load[2, 0].item() for load in loads], rel=1e-4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zh (12 texts)", "en (12 texts)"]


def test_a_film_moves_and_rests_on_its_last_frame():
    figure, axes = plt.subplots(figsize=(2, 1), layout="constrained")
    (curve,) = axes.plot([], [])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    made = pictures.film(figure, lambda part: curve.set_data([0, part], [0, part]), frames=4)
    with PIL.Image.open(io.BytesIO(made.data)) as shots:
        # the picture for where nothing moves, and four frames
        assert shots.n_frames == 5 and shots.info["loop"] == 1
        seen = [shots.convert("L").tobytes() for frame in range(5) if not shots.seek(frame)]
    assert seen[0] == seen[4] and len(set(seen)) == 4
