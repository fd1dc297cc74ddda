import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from aurora_lib.chat import __main__ as chat
from aurora_lib.chat.__main__ import talk
from aurora_lib.course.scale import DATA, ROOT
from aurora_lib.model import memory
from aurora_lib.training import __main__ as training


class Parrot:
    """A session that says what it is told to, piece by piece, and remembers how it was used."""

    adapter, forgotten = True, 0

    def __init__(self, *pieces):
        self.pieces, self.asked, self.spoken, self.resets = pieces, [], [], 0

    def stream(self, text):
        self.asked.append(text)
        for piece in self.pieces:
            self.spoken.append(piece)
            yield piece() or "." if callable(piece) else piece

    def reset(self):
        self.resets += 1

    def save(self, path):
        path.write_text("{}")
        return path


def said(session, *lines):
    talk(session, lines, (page := []).append)
    return "".join(page)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_answers_stream_and_commands_act_on_the_same_session(tmp_path):
    parrot, saved = Parrot("你", "好"), tmp_path / "t.json"
    lines = ("早\n", "  \n", "/base\n", "再见\n", "/reset\n", f"/save {saved}\n", "/quit\n", "x\n")
    page = said(parrot, *lines)
    assert parrot.asked == ["早", "再见"] and parrot.resets == 1 and parrot.adapter is False
    assert page.count("你好\n") == 2 and saved.is_file() and f"[saved as {saved}]" in page
    said(parrot, "/tuned")
    assert parrot.adapter is True


def test_control_codes_of_answers_commands_and_errors_are_shown_and_not_obeyed():
    def refuse():
        raise ValueError("too long: \x1b[31m")

    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202egnp.exe\u2066\n ok\t你好👩‍👩‍👧"
    page = said(Parrot(*evil, refuse), "x", "/\x1b[31m", "/reset")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", page)
    assert "␛[2J" in page and "\\u009b31m" in page and "\\u202e" in page and "\n ok\t你好👩‍👩‍👧" in page
    assert "[too long: ␛[31m]\n[there is no /␛[31m;" in page and page.endswith("[a new conversation]\n")


def test_ctrl_c_stops_the_answer_and_pressed_twice_the_program():
    before = signal.default_int_handler  # in a background job of a shell it is not there: SIGINT is ignored
    signal.signal(signal.SIGINT, before)
    parrot = Parrot("a", interrupt, "b", "c")
    assert said(parrot, "x", "/reset") == "a. [stopped]\n[a new conversation]\n" and parrot.spoken[-1] != "c"
    with pytest.raises(KeyboardInterrupt):
        said(Parrot(lambda: (interrupt(), interrupt())), "x")
    assert signal.getsignal(signal.SIGINT) is before


ANSWERS = {"/nope": "there is no /nope; /help", "/help": "/save FILE", "/save": "name a file"}
ANSWERS["/save /dev/null/a.json"] = "Not a directory"


@pytest.mark.parametrize(("line", "answer"), ANSWERS.items())
def test_command_that_cannot_be_done_says_so_and_the_talk_goes_on(line, answer):
    assert re.search(rf"{answer}(.|\n)*\[a new conversation\]", said(Parrot(), line, "/reset"))


def test_piped_questions_are_answered_on_standard_output_alone(tmp_path):
    saved = tmp_path / "talk.json"
    lines = f"日本的首都是哪里？\n/base\n/reset\n日本的首都是哪里？\n/save {saved}\n".encode() + b"\xff?\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AURORA_")}
    environment |= dict(AURORA_ADAPTER=str(DATA / "tiny_adapter"), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    command, streams = [sys.executable, "-m", "aurora_lib.chat"], dict(input=lines, capture_output=True)
    run = subprocess.run(command, **streams, env=environment, cwd=tmp_path, timeout=300)
    tuned, _, _, base, *rest = run.stdout.decode().splitlines()
    assert run.returncode == 0 and tuned == "日本的首都是东京。" and base == "The capital of Japan is Tokyo."
    assert str(saved) in rest[0] and len(rest) == 2, run.stderr.decode()[-500:]
    assert [m["content"] for m in json.loads(saved.read_text())["messages"]][1::2] == [base]


@pytest.mark.parametrize(("command", "loads"), [(chat, "load_model"), (training, "tune")])
def test_a_gpu_that_is_too_small_ends_a_command_in_sentence_and_table(command, loads, monkeypatch, capsys):
    def refused(*args, **settings):
        memory.predict(memory.MIXTRAL_8X7B, train=False).require(16)

    monkeypatch.setattr(command, loads, refused)
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as ended:
        command.main()
    shown = f"{ended.value.code}{capsys.readouterr().err}"
    assert "the given device has 16.00 GiB" in shown and "inference, 2 x 1024 tokens" in shown
