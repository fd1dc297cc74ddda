import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from aurora_lib import chat
from aurora_lib.course.scale import DATA, ROOT


class Parrot:
    """A session that says what it is told to, piece by piece, and remembers how it was used."""

    adapter, forgotten = True, 0

    def __init__(self, *pieces):
        self.pieces, self.asked, self.spoken, self.resets = pieces, [], [], 0

    def stream(self, text):
        self.asked.append(text)
        for piece in self.pieces:
            self.spoken.append(piece)
            if callable(piece):
                piece()
                piece = "."
            yield piece

    def reset(self):
        self.resets += 1

    def save(self, path):
        path.write_text("{}")
        return path


def talk(session, *lines):
    said = io.StringIO()
    chat.talk(session, lines, said.write)
    return said.getvalue()


def test_answers_stream_and_commands_act_on_the_same_session(tmp_path):
    parrot = Parrot("你", "好")
    said = talk(
        parrot,
        "早\n",
        "  \n",
        "/base\n",
        "再见\n",
        "/reset\n",
        f"/save {tmp_path / 't.json'}\n",
        "/quit\n",
        "x\n",
    )
    assert parrot.asked == ["早", "再见"] and parrot.resets == 1 and parrot.adapter is False
    assert said.count("你好\n") == 2 and (tmp_path / "t.json").is_file() and "t.json" in said
    talk(parrot, "/tuned")
    assert parrot.adapter is True


def test_control_codes_of_a_model_are_shown_and_not_obeyed():
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202egnp.exe\u2066\n ok\t你好👩‍👩‍👧"
    said = talk(Parrot(*evil), "x")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", said)
    assert "␛[2J" in said and "\\u009b31m" in said and "\\u202e" in said
    assert said.endswith("\n ok\t你好👩‍👩‍👧\n")


def test_control_codes_of_a_command_and_of_an_error_are_shown_too():
    class Failing(Parrot):
        def stream(self, text):
            raise ValueError(f"too long: {text}")
            yield

    said = talk(Failing(), "/\x1b[31m", "\x1b[31mhello", "/reset")
    assert "\x1b" not in said and "[too long: ␛[31mhello]" in said and "a new conversation" in said


def test_ctrl_c_stops_the_answer_and_not_the_program():
    before = signal.getsignal(signal.SIGINT)
    parrot = Parrot("a", lambda: signal.raise_signal(signal.SIGINT), "b", "c")
    said = talk(parrot, "x", "/reset")
    assert said == "a. [stopped]\n[a new conversation]\n" and parrot.spoken[-1] != "c"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_pressed_twice_ends_an_answer_that_does_not_stop():
    twice = [lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT))]
    with pytest.raises(KeyboardInterrupt):
        talk(Parrot(*twice), "x")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/nope", "there is no /nope; /help"),
        ("/help", "/save FILE"),
        ("/save", "name a file"),
        ("/save /nowhere/at/all.json", "No such file"),
    ],
)
def test_command_that_cannot_be_done_says_so_and_the_talk_goes_on(line, answer):
    assert re.search(rf"{answer}(.|\n)*\[a new conversation\]", talk(Parrot(), line, "/reset"))


def test_piped_questions_are_answered_on_standard_output_alone(tmp_path):
    saved = tmp_path / "talk.json"
    lines = f"日本的首都是哪里？\n/base\n日本的首都是哪里？\n/save {saved}\n".encode() + b"\xff?\n"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AURORA_")}
    environment |= {
        "AURORA_ADAPTER": str(DATA / "tiny_adapter"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "aurora_lib.chat"]
    run = subprocess.run(
        command, input=lines, env=environment, cwd=tmp_path, capture_output=True, timeout=300
    )
    tuned, _, base, *rest = run.stdout.decode().splitlines()
    assert run.returncode == 0 and tuned == "日本的首都是东京。" and base == "The capital of Japan is Tokyo."
    assert str(saved) in rest[0] and len(rest) == 2, run.stderr.decode()[-500:]
    assert [m["content"] for m in json.loads(saved.read_text())["messages"]][1::2] == [tuned, base]


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as left:
        chat.main(["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and all(name in shown for name in ("/reset", "/base", "/save FILE", "Ctrl-C"))
