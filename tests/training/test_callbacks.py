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
    log += [dict.fromkeys(callbacks.SHARES, share) | dict(validation=3, step=share) for share in (0, 1)]
    budget = memory.MemoryBudget("a run", {"all of it": 3.0}, 0)
    figure = callbacks.plot(log, budget)
    loss, answers, *others = figure.axes
    assert [ax.get_title() for ax in (loss, *others)] == list(callbacks.PANELS.values())
    assert all(list(ax.lines[0].get_ydata()) == [2, 2] for ax in (loss, *others))
    assert list(loss.lines[1].get_ydata()) == list(others[-1].lines[1].get_ydata()) == [3, 3]
    assert [list(line.get_ydata()) for line in answers.lines] == 3 * [[0, 1]]
    bottom, top = others[-1].get_ylim()
    assert bottom == 0 and top > 3
    callbacks.plot([]).draw_without_rendering()  # before the first entry


def test_watching_asks_every_few_steps_and_changes_no_weight(tiny, build, tokenizer, capsys):
    rows = Dataset.from_dict({"messages": TALK[:4], "source": ["x", "x", "y", "y"]})
    ends = []
    for watched in (False, True):
        made = build(tiny, held=rows, save_strategy="no")
        if watched:
            made.add_callback(callbacks.Watch(made, tokenizer, every=3, questions=2, max_new_tokens=4))
        training.run(made)
        ends.append([p.detach().clone() for p in made.model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *ends))
    looks = [entry for entry in made.state.log_history if "answer" in entry]
    assert [entry["step"] for entry in made.state.log_history if "loss" in entry] == [*range(1, 9)]
    printed = capsys.readouterr().out.splitlines()
    assert [look["step"] for look in looks[:2]] == [0, 2] and looks[-1]["step"] == 8
    assert [line for line in printed if line.startswith("step")][-1].endswith(looks[-1]["answer"])
    for look in looks:
        own = [e for e in made.state.log_history if e["step"] == look["step"] and "eval_x_loss" in e]
        assert look["validation"] > 0 and own and set(callbacks.SHARES) < set(look)


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
