"""Runs that are stopped, killed, short of disk or half-written end with the bytes of an undisturbed one."""

import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from aurora_lib import training
from aurora_lib.course.scale import ROOT, choose
from aurora_lib.model import AdapterError, save_adapter
from aurora_lib.training import callbacks, running
from tests.training.conftest import TALK


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


@pytest.fixture
def full_disk():
    """After `full_disk()` no file of this process may grow over 10 kB; `full_disk(False)` ends that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda on=True: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]) if on else before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, build):
    """An undisturbed run of eight steps: its folder, its weights, its trainer."""
    made = build(choose({"AURORA_RUNS": str(tmp_path_factory.mktemp("whole"))}))
    training.run(made)
    return Path(made.args.output_dir), weights(made), made


def test_run_stopped_by_ctrl_c_and_resumed_ends_with_the_same_weights(tiny, build, whole, capsys):
    handler = signal.getsignal(signal.SIGINT)
    made = build(tiny, activation_checkpointing=True)  # what is recomputed is the same
    made.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt, match=r"Stopped after step 3 of 8; checkpoint-3 is saved"):
        training.run(made)
    assert signal.getsignal(signal.SIGINT) is handler
    made = build(tiny)
    training.run(made)
    assert "Resuming from checkpoint-3" in capsys.readouterr().out
    assert same(weights(made), whole[1])
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == list(range(1, 9))
    wanted = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib"}
    assert all(wanted <= entry.keys() and entry["tokens_per_second"] > 0 for entry in logged)
    # nothing is left to do: the result is taken up again, without a ninth step in the epoch that is not over
    again = build(tiny)
    assert training.run(again).global_step == 8 and same(weights(again), whole[1])


def test_second_ctrl_c_stops_at_once_but_a_doubled_one_does_not():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), running.StopBetweenSteps() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        stop.asked -= 2
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
    assert signal.getsignal(signal.SIGINT) is handler


def pretend_seconds(monkeypatch, each=2.0):
    """Time passes by steps alone: `each` seconds a step."""
    now = [1000.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            now[0] += each

        def look(self, *_, **__):
            now[0] += 50 * each
            return SimpleNamespace(score=lambda *_: SimpleNamespace(accuracy=0.5), rows=[{"answer": ""}])

    return Clock()


def rates(made):
    return [entry["learning_rate"] for entry in made.state.log_history if "learning_rate" in entry]


def test_the_cosine_ends_with_the_minutes_as_if_so_many_steps_were_asked(tiny, build, monkeypatch, capsys):
    made = build(tiny, max_steps=200, save_steps=1000)
    made.add_callback(clock := pretend_seconds(monkeypatch))
    monkeypatch.setattr(callbacks, "probe", clock.look)
    made.add_callback(callbacks.Watch(made, None))  # its looks are no training, however long
    training.run(made, minutes=1)
    steps, peak = made.state.global_step, made.args.learning_rate
    assert steps == 30 and made.state.max_steps == steps
    assert "30 steps in 1 minutes (so many fit, about)" in capsys.readouterr().out
    asked = [peak * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert rates(made) == pytest.approx(asked, abs=0.1 * peak) and rates(made)[-1] < 0.01 * peak
    assert callbacks.training_seconds(made.state) == pytest.approx(60, abs=6)
    assert "planned" not in (save_adapter(made, tiny) / "README.md").read_text()
    with pytest.raises(ValueError, match="cosine without warm-up"):
        training.run(build(tiny, lr_scheduler_type="linear"), minutes=1)


@pytest.mark.parametrize(("minutes", "steps"), [(1.5, 45), (0.1, 25)])
def test_killed_it_goes_on_within_other_minutes(tiny, build, monkeypatch, capsys, minutes, steps):
    made = build(tiny, max_steps=200, save_steps=5)
    made.add_callback(clock := pretend_seconds(monkeypatch))
    made.add_callback(At(16, lambda: (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        training.run(made, minutes=1)
    again = build(tiny, max_steps=200, save_steps=5)
    again.add_callback(clock)
    training.run(again, minutes=minutes)
    said = capsys.readouterr().out
    assert "Resuming from checkpoint-15" in said and f"0.5 of {minutes:g} minutes are used" in said
    assert f"it falls to zero in {'the rest' if minutes > 1 else '10 steps more'}." in said
    assert again.state.global_step == pytest.approx(steps, abs=1)
    assert rates(again)[15] == pytest.approx(rates(made)[14], abs=0.1 * made.args.learning_rate)
    assert sorted(rates(again), reverse=True) == rates(again)
    assert rates(again)[-1] < 0.02 * made.args.learning_rate
    third = build(tiny, max_steps=200, save_steps=5)
    assert training.run(third, minutes=minutes).global_step == third.state.max_steps == again.state.max_steps


FILES = "adapter_model.safetensors optimizer.pt scheduler.pt rng_state.pth trainer_state.json run.json"


@pytest.mark.parametrize("name", FILES.split())
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_half_written_checkpoint_is_named_and_the_one_before_it_used(whole, tmp_path, capsys, name, left):
    folder, run = tmp_path / "checkpoints", running.fingerprint(whole[2])
    shutil.copytree(whole[0], folder)
    for stray in ("checkpoint-abc", "tmp-checkpoint-9", "checkpoint-"):
        (folder / stray).mkdir()
    assert running.checkpoint_to_resume(folder, run) == folder / "checkpoint-8"
    file = folder / "checkpoint-8" / name
    data = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(data[: int(left * len(data))])
    assert running.checkpoint_to_resume(folder, run) == folder / "checkpoint-6"
    assert "checkpoint-8 was not written completely" in capsys.readouterr().out
    assert (folder / "damaged-checkpoint-8-1").is_dir()  # kept, but not among those that count


def test_checkpoints_of_another_run_are_moved_aside_with_the_reason(whole, tmp_path, capsys):
    run = running.fingerprint(whole[2])
    for changed in ({"learning_rate": 0.02}, {"base": "b"}, {"hash of the data": "y"}):
        shutil.copytree(whole[0], tmp_path / "checkpoints")
        assert running.checkpoint_to_resume(tmp_path / "checkpoints", run | changed) is None
        assert f"another run's ({next(iter(changed))}: " in capsys.readouterr().out
        assert not (tmp_path / "checkpoints").exists()
    assert len(list(tmp_path.glob("checkpoints-other-*/checkpoint-8"))) == 3


def test_fingerprint_sees_data_settings_and_base(tiny, build):
    made = running.fingerprint(build(tiny))
    assert made == running.fingerprint(build(tiny, save_steps=3))
    assert made["base"] == "tiny" and made["rows"] == 20 and made["r"] == 8
    changes = {"hash of the data": dict(rows=TALK[::-1]), "learning_rate": dict(learning_rate=0.1)}
    for seen, changed in changes.items():
        other = running.fingerprint(build(tiny, **changed))
        assert [name for name in made if made[name] != other[name]] == [seen]
    experts = dict(target_modules=["q_proj", "v_proj", "w1", "w2", "w3"], lora_dropout=0.0)
    for seen, lora in {"target_parameters": experts, "use_rslora": dict(use_rslora=True)}.items():
        assert made[seen] != running.fingerprint(build(tiny, lora=training.lora_config(**lora)))[seen]


def test_disk_full_in_a_checkpoint_is_one_sentence(tiny, build, whole, full_disk, capsys):
    """And the checkpoint before it is used."""
    made = build(tiny)
    made.add_callback(At(4, full_disk))
    with pytest.raises(training.TrainingError, match=r"checkpoint-4 could not be written to .* Make room"):
        training.run(made)
    full_disk(False)
    again = build(tiny)
    training.run(again)
    assert "Resuming from checkpoint-2" in capsys.readouterr().out
    assert same(weights(again), whole[1])


def test_disk_full_while_saving_the_adapter_keeps_the_old_one_and_the_checkpoints(tiny, build, full_disk):
    made = build(tiny, max_steps=1)
    training.run(made)
    folder = save_adapter(made, tiny, tiny.runs / "mine")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    training.run(made := build(tiny, max_steps=2))
    full_disk()
    with pytest.raises(AdapterError, match=r"could not be saved .* Nothing is lost: the checkpoints stay"):
        save_adapter(made, tiny, folder)
    full_disk(False)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tiny.runs.glob("mine*")) == [folder]
    assert running.damage(Path(made.args.output_dir) / "checkpoint-2") is None
    save_adapter(made, tiny, folder)
    assert not Path(made.args.output_dir).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill_training.py forks its attempts")
def test_killed_runs_end_with_the_same_bytes():
    command = [sys.executable, "-m", "tools.record.kill_training", "--kills", "2", "--steps", "8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same bytes as the undisturbed one" in done.stdout
