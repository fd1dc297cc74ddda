import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import Dataset
from nbclient import NotebookClient
from safetensors.torch import load_file
from transformers import TrainerCallback

from aurora_lib import training
from aurora_lib.course import scale
from aurora_lib.model import AdapterError, load_model, load_tokenizer, memory, save_adapter
from aurora_lib.training import callbacks, checkpoints

TALK = [
    [
        {"role": "user", "content": f"{number} 号的首都是哪里？"},
        {"role": "assistant", "content": f"第 {number} 号的首都是巴黎。"},
    ]
    for number in range(20)
]


@pytest.fixture
def tiny(tmp_path):
    return scale.choose({"AURORA_RUNS": str(tmp_path)})


def trainer(tiny, rows=TALK, folder=None, **changes):
    """Five steps an epoch, so that steps 3 and 8 lie within one, and the paper's dropout is on."""
    args = training.sft_config(
        tiny, folder, **(dict(disable_tqdm=True, max_steps=8, save_steps=2, logging_steps=1) | changes)
    )
    args.gradient_accumulation_steps = 2
    base, tokenizer = load_model(tiny.base_model, **tiny.loading), load_tokenizer(tiny.base_model)
    return training.build_trainer(base, tokenizer, Dataset.from_dict({"messages": rows}), tiny, args)


def weights(made):
    return {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


class At(TrainerCallback):
    """Calls a function when a step begins."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.function()


def small_files():
    """From now on no file of this process may grow over 10 kB: to the writer, a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def room():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its folder and its weights."""
    here = scale.choose({"AURORA_RUNS": str(tmp_path_factory.mktemp("whole"))})
    made = trainer(here)
    training.run(made)
    return Path(made.args.output_dir), weights(made), made.state.log_history


def test_ctrl_c_leaves_a_checkpoint_and_the_resumed_run_ends_with_the_same_weights(tiny, whole, capsys):
    handler = signal.getsignal(signal.SIGINT)
    made = trainer(tiny)
    made.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(
        KeyboardInterrupt, match=r"Stopped after step 3 of 8; checkpoint-3 is saved. Run the same again"
    ):
        training.run(made)
    assert signal.getsignal(signal.SIGINT) is handler
    made = trainer(tiny)
    made.evaluate()  # as the notebook does; it draws random numbers
    output = training.run(made)
    assert "Resuming from checkpoint-3, step 3" in capsys.readouterr().out
    assert output.metrics["resumed_from_step"] == 3
    assert same(weights(made), whole[1])
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == list(range(1, 9))
    wanted = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib"}
    assert all(wanted <= entry.keys() and entry["tokens_per_second"] > 0 for entry in logged)
    # nothing is left to do: the result is taken up again, without a ninth step in the epoch that is not over
    again = trainer(tiny)
    assert training.run(again).global_step == 8 and same(weights(again), whole[1])


def test_second_ctrl_c_stops_at_once_but_a_doubled_one_does_not():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), callbacks.StopBetweenSteps() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        stop.asked -= 2
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is handler


def test_minutes_end_a_run_with_a_checkpoint_that_saving_the_adapter_keeps(tiny, capsys):
    made = trainer(tiny, save_steps=100)
    output = training.run(made, minutes=1e-6)
    assert output.global_step == 1 and "minutes are over after step 1 of 8" in capsys.readouterr().out
    folder = save_adapter(made, tiny)
    assert "1 steps of 8 planned" in (folder / "README.md").read_text()
    assert checkpoints.newest_whole(made.args.output_dir).name == "checkpoint-1"


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
)
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_half_written_checkpoint_is_named_and_the_one_before_it_used(whole, tmp_path, capsys, name, left):
    for step in (6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for file in (whole[0] / f"checkpoint-{step}").iterdir():
            (tmp_path / f"checkpoint-{step}" / file.name).write_bytes(file.read_bytes())
    for stray in ("checkpoint-abc", "tmp-checkpoint-9", "checkpoint-"):
        (tmp_path / stray).mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert checkpoints.checkpoint_to_resume(tmp_path).name == "checkpoint-8"
    file = tmp_path / "checkpoint-8" / name
    data = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(data[: int(left * len(data))])
    assert checkpoints.checkpoint_to_resume(tmp_path).name == "checkpoint-6"
    assert "checkpoint-8 was not written completely" in capsys.readouterr().out


def test_flipped_bit_in_the_optimizer_is_noticed(whole, tmp_path):
    (tmp_path / "checkpoint-8").mkdir()
    for file in (whole[0] / "checkpoint-8").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= file.name == "optimizer.pt"
        (tmp_path / "checkpoint-8" / file.name).write_bytes(data)
    assert checkpoints.checkpoint_to_resume(tmp_path) is None


def test_checkpoints_of_another_run_are_moved_aside_with_the_reason(tmp_path, capsys):
    folder, run = tmp_path / "checkpoints", {"base": "a", "learning_rate": 0.01, "hash of the data": "x"}
    assert checkpoints.claim(folder, run) is None
    (folder / "checkpoint-5").mkdir()
    checkpoints.claim(folder, run)
    assert (
        folder / "damaged-checkpoint-5-1"
    ).is_dir()  # empty, so half-written: kept, but not among those to keep
    for changed in ({"learning_rate": 0.02}, {"base": "b"}, {"hash of the data": "y"}):
        (folder / "checkpoint-7").mkdir()
        run |= changed
        assert checkpoints.claim(folder, run) is None
        name = next(iter(changed))
        assert f"another run's ({name}: " in capsys.readouterr().out
        assert not (folder / "checkpoint-7").exists()
    assert len(list(tmp_path.glob("checkpoints-other-*/checkpoint-7"))) == 3


def test_fingerprint_sees_data_settings_and_base(tiny):
    made = checkpoints.fingerprint(trainer(tiny))
    assert made == checkpoints.fingerprint(trainer(tiny))
    reordered = checkpoints.fingerprint(trainer(tiny, TALK[1:] + TALK[:1]))
    assert {name for name in made if made[name] != reordered[name]} == {"hash of the data"}
    assert made["base"] == "tiny" and made["conversations"] == 20 and made["r"] == 8


def test_disk_full_in_a_checkpoint_is_one_sentence_and_the_one_before_is_used(tiny, whole, room, capsys):
    made = trainer(tiny)
    made.add_callback(At(4, small_files))
    with pytest.raises(
        training.SaveError, match=r"step 4 could not be written .* checkpoint-2 is whole: make room"
    ):
        training.run(made)
    room()
    again = trainer(tiny)
    training.run(again)
    assert "Resuming from checkpoint-2" in capsys.readouterr().out
    assert same(weights(again), whole[1])


def test_disk_full_while_saving_the_adapter_keeps_the_old_one_and_the_checkpoints(tiny, room):
    made = trainer(tiny, max_steps=1)
    training.run(made)
    folder = save_adapter(made, tiny, tiny.runs / "mine")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    training.run(made := trainer(tiny, max_steps=2))
    small_files()
    with pytest.raises(AdapterError, match=r"could not be saved .* Nothing is lost: the checkpoints stay"):
        save_adapter(made, tiny, folder)
    room()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tiny.runs.glob("mine*")) == [folder]
    checkpoint = checkpoints.newest_whole(made.args.output_dir)
    saved = save_adapter(made, tiny, folder)
    assert not checkpoint.exists()
    assert load_file(saved / "adapter_model.safetensors").keys()


def test_picture_holds_every_panel_and_the_prediction():
    log = [dict.fromkeys(callbacks.PANELS, 2.0) | {"step": step} for step in (1, 2)] + [
        {"eval_loss": 1, "step": 2}
    ]
    figure = callbacks.plot(log, predicted=3.0)
    assert [ax.get_title() for ax in figure.axes[:5]] == list(callbacks.PANELS.values())
    assert all(list(ax.lines[0].get_ydata()) == [2, 2] for ax in figure.axes[:5])
    assert list(figure.axes[4].lines[1].get_ydata()) == [3, 3]
    bottom, top = figure.axes[4].get_ylim()
    assert bottom == 0 and top > 3
    callbacks.plot([])  # before the first entry


def test_live_plot_leaves_one_picture_in_a_notebook_and_none_in_a_terminal(capsys):
    code = """
from transformers import TrainerState
from aurora_lib.callbacks import LivePlot, PANELS
live, state = LivePlot(predicted=0.5, every=0), TrainerState(log_history=[])
live.on_train_begin(None, state, None)
for step in range(1, 5):
    state.log_history.append(dict.fromkeys(PANELS, 1 / step) | {"step": step})
    live.next = 0
    live.on_log(None, state, None)
live.on_train_end(None, state, None)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    pictures = [
        out.data["image/png"] for out in notebook.cells[0].outputs if "image/png" in out.get("data", {})
    ]
    assert len(pictures) == 1 and len(pictures[0]) < 100_000
    exec(code)
    assert capsys.readouterr().out == ""


def test_preflight_counts_steps_and_disk_as_the_run_does(tiny, whole, monkeypatch):
    config, rows = load_model(tiny.base_model, **tiny.loading).config, Dataset.from_dict({"messages": TALK})
    made = trainer(tiny, max_steps=-1, num_train_epochs=2, save_strategy="no")
    predicted = training.preflight(config, rows, tiny, made.args, price_per_hour=3)
    training.run(made)
    assert predicted.steps == made.state.global_step == 10
    assert predicted.tokens == made.state.num_input_tokens_seen
    used = sum(file.stat().st_size for file in whole[0].rglob("*") if file.is_file())
    assert used < predicted.disk_needed < 50 * used
    assert "not measured" in str(predicted) and predicted.cost is None
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(memory.DoesNotFit, match=r"of disk and .* has 0.00 GiB free. Make room"):
        training.preflight(config, rows, tiny, made.args)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill_training.py forks its attempts")
def test_killed_runs_end_with_the_same_bytes():
    command = [
        sys.executable,
        scale.ROOT / "tools" / "record" / "kill_training.py",
        "--kills",
        "2",
        "--steps",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same bytes as the undisturbed one" in done.stdout
