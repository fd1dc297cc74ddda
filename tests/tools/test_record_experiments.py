"""What `tools/record/experiments.py` measures and predicts for notebook 04's tables."""

import json

import bitsandbytes as bnb
import pytest
import torch

from tests.tools.test_variants import ROWS
from tools.record import experiments as tool


def test_packed_conversations_do_not_see_each_other_and_have_no_padding(tiny):
    losses = tool.packed_losses(tiny, ROWS)
    assert losses["packed"] == pytest.approx(losses["alone"], rel=1e-5)
    assert losses["without boundaries"] != pytest.approx(losses["alone"], rel=1e-3)
    assert tool.padding(tiny, ROWS, packing=True) == 0 < tool.padding(tiny, ROWS) < 0.5


@pytest.mark.parametrize(("kind", "bytes_each"), [(torch.optim.AdamW, 8), (bnb.optim.AdamW8bit, 2)])
def test_state_of_an_optimizer_is_counted_as_allocated(kind, bytes_each):
    weight = torch.nn.Parameter(torch.randn(256, 256))
    optimizer = kind([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    # scales and tables come on top: one fp32 for 256 values of each moment, 1 KiB a table
    least = bytes_each * weight.numel()
    assert least <= tool.optimizer_bytes(optimizer) < 1.05 * least


def test_batchings_lose_no_conversation_and_grouping_and_packing_pad_less():
    lengths = [16 + (97 * i) % 900 for i in range(400)]
    made = tool.batchings(lengths, 1024)
    assert all(sum(map(sum, batches)) == sum(lengths) for batches in made.values())
    assert sorted(n for batch in made["plain"] for n in batch) == sorted(lengths)
    rows = {name: tool.predicted(name, batches) for name, batches in made.items()}
    padding = [rows[name]["padding [share]"] for name in ("plain", "grouped by length", "packed")]
    assert padding[0] > padding[1] > padding[2] == 0
    assert rows["packed"]["batches an epoch"] < rows["plain"]["batches an epoch"] == 2000


def test_prediction_is_arithmetic_that_can_be_followed():
    row = tool.predicted("plain", [[100, 300]] * 1000)
    assert row["padding [share]"] == pytest.approx(1 / 3, abs=1e-4) and row["tokens a batch"] == 400
    # 46.4 G weights, 4.5 bytes each, three times, at 3 TB/s; and 600 positions of 77 GFLOP at 600 TFLOP/s
    seconds = 3 * 10_000 * (3 * 46.44e9 * 4.516 / 3e12 + 600 * 77e9 / 600e12)
    assert row["hours, floor"] == pytest.approx(seconds / 3600, abs=0.1)


def test_record_holds_the_medians_and_meets_the_bounds():
    record = json.loads(tool.RECORD.read_text(encoding="utf-8"))
    for name, bound in tool.BOUNDS.items():
        middle = sorted(row[name] for row in record["seeds"]["rows"])[1]
        assert record["values"][f"{name}, median of three seeds [share]"] == middle >= bound
