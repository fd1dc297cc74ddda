import io
import os
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest

from aurora_lib.chat import __main__ as chat
from aurora_lib.chat.__main__ import talk
from aurora_lib.course.scale import DATA, ROOT
from aurora_lib.model import memory
from aurora_lib.training import __main__ as training


class Parrot:
    """A session that says what it is told to, piece by piece, and remembers how it was used."""

    forgotten = 0

    def __init__(self, *pieces):
        self.pieces, self.asked, self.spoken, self.resets = pieces, [], [], 0

    def stream(self, text):
        self.asked.append(text)
        for piece in self.pieces:
            self.spoken.append(piece)
            yield piece() or "." if callable(piece) else piece

    def reset(self):
        self.resets += 1


def said(session, *lines):
    talk(session, lines, (page := []).append)
    return "".join(page)


def test_answers_stream_and_an_empty_line_begins_a_new_conversation():
    parrot = Parrot("你", "好")
    assert said(parrot, "早\n", "  \n", "再见\n") == "你好\n你好\n"
    assert parrot.asked == ["早", "再见"] and parrot.resets == 1
    parrot.forgotten = 2
    assert said(parrot, "x") == "你好\n[2 old turns are forgotten]\n"


def test_control_codes_of_answers_and_errors_are_shown_and_not_obeyed():
    refuse = Mock(side_effect=ValueError("too long: \x1b[31m"))
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202egnp.exe\u2066\n ok\t你好👩‍👩‍👧"
    page = said(Parrot(*evil, refuse), "x", "y")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", page)
    assert "␛[2J" in page and "\\u009b31m" in page and "\\u202e" in page and "\n ok\t你好👩‍👩‍👧" in page
    assert page.count("[too long: ␛[31m]\n") == 2, "after an error the talk goes on"


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on():
    parrot = Parrot("a", Mock(side_effect=KeyboardInterrupt), "b")
    assert said(parrot, "x", "y") == 2 * "a [stopped]\n" and "b" not in parrot.spoken


def test_piped_questions_are_answered_on_standard_output_alone(tmp_path, monkeypatch, capsys):
    lines = "日本的首都是哪里？\n\n日本的首都是哪里？\n".encode() + b"\xff?\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AURORA_")}
    environment |= dict(AURORA_ADAPTER=str(DATA / "tiny_adapter"), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    streams = dict(input=lines, capture_output=True, env=environment, cwd=tmp_path, timeout=300)
    tuned = subprocess.run([sys.executable, "-m", "aurora_lib.chat"], **streams)
    assert tuned.returncode == 0, tuned.stderr.decode()[-500:]
    first, second, third = tuned.stdout.decode().splitlines()
    assert first == second == "日本的首都是东京。" and third
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    chat.main(["--base"])
    assert capsys.readouterr().out.splitlines()[0] == "The capital of Japan is Tokyo."


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
