"""`python -m aurora_lib.training`."""

import pytest

from aurora_lib.data import save_conversations
from aurora_lib.training import __main__ as terminal
from tests.data.conversations import dataset
from tests.training.conftest import TALK


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`command(*options, AURORA_...=...)` runs it with its runs in `tmp_path`."""

    def run(*options, **environment):
        for name, value in ({"AURORA_RUNS": str(tmp_path), "AURORA_SCALE": "tiny"} | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["training", *options])
        terminal.main()

    return run


def test_it_trains_as_asked_and_keeps_the_adapter_that_was_there(tiny, tmp_path, command, capsys):
    save_conversations(dataset(*TALK), tiny)
    options = ["--scale", "tiny", "--out", str(tmp_path / "mine"), "--max-steps", "2", "--batch", "1"]
    command(*options, "--learning-rate", "0.002", "--price-per-hour", "2", AURORA_SCALE="full")
    printed = capsys.readouterr().out
    assert "optimizer steps" in printed and "cost at 2 an hour" in printed
    assert f"the adapter is in {tmp_path / 'mine'}" in printed
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "0.002" in card and "4 rows a step" in card
    command(*options)
    assert "The adapter that was in mine is kept as mine-before-" in capsys.readouterr().out
    assert len(list(tmp_path.glob("mine-before-*/adapter_model.safetensors"))) == 1


REFUSED = [
    (["--epochs", "0"], {}, 2, "must be above 0"),
    (["--batch", "many"], {}, 2, "invalid int value"),
    (["--out", "."], {}, 2, "holds no adapter. Name a new folder"),
    ([], {"AURORA_SCALE": "huge"}, 1, "AURORA_SCALE='huge' does not exist"),
    ([], {"AURORA_DATA": "/nowhere"}, 1, "/nowhere"),
]


@pytest.mark.parametrize(("options", "environment", "code", "said"), REFUSED)
def test_it_ends_in_a_sentence_where_it_cannot_go_on(command, capsys, options, environment, code, said):
    with pytest.raises(SystemExit) as ended:
        command(*options, **environment)
    assert ended.value.code == code and said in capsys.readouterr().err
