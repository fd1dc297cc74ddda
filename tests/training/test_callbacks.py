import pytest
import torch
from datasets import Dataset

from aurora_lib import training
from aurora_lib.model import memory
from aurora_lib.training import callbacks
from tests.training.conftest import TALK


def test_a_zero_gradient_stops_the_run(tiny, build):
    made = build(tiny)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(training.TrainingError, match="gradient norm is 0 at step 1"):
        training.run(made)


def test_picture_holds_every_panel_and_the_prediction():
    log = [dict.fromkeys(callbacks.PANELS, 2.0) | {"step": step} for step in (1, 2)]
    log += [{"eval_loss": 1, "step": 2}]
    budget = memory.MemoryBudget("a run", {"all of it": 3.0}, 0)
    figure = callbacks.plot(log, budget)
    assert [ax.get_title() for ax in figure.axes[:5]] == list(callbacks.PANELS.values())
    assert all(list(ax.lines[0].get_ydata()) == [2, 2] for ax in figure.axes[:5])
    assert list(figure.axes[4].lines[1].get_ydata()) == [3, 3]
    bottom, top = figure.axes[4].get_ylim()
    assert bottom == 0 and top > 3
    callbacks.plot([])  # before the first entry


def test_preflight_counts_steps_tokens_and_disk_as_the_run_does(tiny, build, monkeypatch):
    rows = Dataset.from_dict({"messages": TALK})
    made = build(tiny, max_steps=-1, num_train_epochs=2, save_steps=4)
    given = (made.model.config, rows, tiny, made.args)
    predicted = training.preflight(*given, price_per_hour=3)
    training.run(made)
    assert (predicted.steps, predicted.tokens) == (10, made.state.num_input_tokens_seen)
    timed = training.preflight(*given[:2], type(tiny)(**vars(tiny) | dict(minutes=0.5)), made.args)
    assert "0.5 minutes (AURORA_MINUTES); the cosine ends there" in str(timed)
    used = sum(file.stat().st_size for file in tiny.runs.rglob("*") if file.is_file())
    assert used < predicted.disk < 50 * used
    assert "not measured" in str(predicted) and "cost at 3 an hour" in str(predicted)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(memory.DoesNotFit, match=r"of disk and .* has 0.00 GiB free. Make room"):
        training.preflight(*given)
