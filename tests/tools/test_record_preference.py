"""What `tools/record/preference.py` writes for notebook 07's plot."""

from types import SimpleNamespace

from tools.record import preference as tool


def test_an_interrupted_recording_goes_on_and_one_of_other_adapters_begins_anew(tmp_path, monkeypatch):
    stage = lambda loss, rate, seed: made.append(rate) or dict(en_right=rate, zh_right=1)  # noqa: E731
    start = SimpleNamespace(pairs={"kind": ["a"]}, held_out=None, stage=stage)
    monkeypatch.setattr(tool, "Start", lambda chosen, adapter: start)
    monkeypatch.setattr(tool, "shares", lambda said: {})
    (file := tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    made, how = [], (None, tmp_path / "out.json", {"it": tmp_path}, {"DPO": ["sigmoid"]})
    for rates, weights, runs in (((1, 2), b"1", 6), ((1, 2, 3), b"1", 9), ((1, 2, 3), b"2", 18)):
        file.write_bytes(weights)
        assert tool.record(*how, rates)["chosen"] == {"it": {"DPO": rates[-1]}} and len(made) == runs


def test_the_record_is_of_the_shipped_adapters_and_has_every_run_once():
    record = tool.json.loads(tool.RECORD.read_text(encoding="utf-8"))
    shipped = {name: tool.digest(path / "adapter_model.safetensors") for name, path in tool.STARTS.items()}
    runs = [tuple(row[k] for k in ("start", "arm", "learning rate", "seed")) for row in record["rows"]]
    every = tool.product(tool.STARTS, tool.ARMS, tool.RATES, tool.SEEDS)
    assert record["adapters"] == shipped and sorted(runs) == sorted(every)
