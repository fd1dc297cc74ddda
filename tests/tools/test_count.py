"""Full-size training steps, counted on the meta device beside `memory.predict` and the committed record."""

import pytest

from aurora_lib.course import results
from aurora_lib.course.machine import GIB
from aurora_lib.model import memory
from tools.record import count

RECORD = results.recorded("mixtral_8x7b", "counted")
STACKS = {"training": (count.today, memory.TODAY)}
STACKS["training, the stack of 2023"] = (lambda batch: count.of_2023(batch, (1024, 1024)), memory.OF_2023)
MIB = 2**20


@pytest.mark.parametrize(("batch", "part"), [*zip((2, 16), STACKS, strict=True)])
def test_predicted_memory_of_mixtral_is_what_a_count_of_all_its_tensors_gives(batch, part):
    step, stack = STACKS[part]
    seen = step(batch)
    predicted = memory.predict(memory.MIXTRAL_8X7B, batch=batch, stack=stack)
    assert predicted.weights * GIB == pytest.approx(seen.weights, rel=0.001)
    # of what comes on top of them: of the whole, 2 % would hide a line of the budget
    assert predicted.total * GIB - seen.weights == pytest.approx(seen.peak - seen.weights, rel=0.015)
    label = f"{part}: batch {batch}, {{}} [GiB]"
    assert RECORD[label.format("allocated")] == pytest.approx(seen.peak / GIB, abs=0.01)
    reserved = count.Allocator().play(seen.events)
    assert seen.peak <= reserved
    assert RECORD[label.format("reserved")] == pytest.approx(reserved / GIB, abs=0.05)
    for other in {2, 4, 8, 16} - {batch}:  # recorded, and not counted again
        beyond = memory.predict(memory.MIXTRAL_8X7B, batch=other, stack=stack).total - predicted.weights
        counted = RECORD[f"{part}: batch {other}, allocated [GiB]"] - seen.weights / GIB
        assert beyond == pytest.approx(counted, rel=0.015)


def test_varied_lengths_reserve_what_is_recorded_and_scores_are_in_32_bits_only_once():
    seen = count.of_2023(16, count.varied_lengths(16)[:3])
    recorded = RECORD["training, the stack of 2023: batch 16, varied lengths, reserved [GiB]"]
    assert count.Allocator().play(seen.events) / GIB == pytest.approx(recorded, abs=0.05)
    scores = 2 * memory.MIXTRAL_8X7B.num_attention_heads * 1024**2
    with count.Storages() as seen:
        assert count.empty(100).is_meta and seen.events[0] == (1, 512), "rounded up as on CUDA"
        layer = count.Attention(memory.MIXTRAL_8X7B, eager=True, double_quant=True)
        shared = count.empty(2, 1, 1024, 1024), count.empty(1024, 128), count.empty(1024, 128)
        layer(count.empty(2, 1024, 4096).requires_grad_(), *shared)
    assert [size for number, size in seen.events if number > 0].count(4 * scores) == 1


def test_inference_and_the_other_settings_are_predicted_too():
    seen = count.prompt_today(1, 2048)
    inference = memory.predict(memory.MIXTRAL_8X7B, train=False, batch=1, length=2048)
    assert inference.total * GIB == pytest.approx(seen.peak, rel=0.02)
    changes = {"32-bit absmax": dict(double_quant=False), "no checkpointing": dict(checkpointing=False)}
    changes["FlashAttention"] = dict(stack=memory.Stack(expert_layers=True, whole_logits=True))
    for what, settings in changes.items():
        for batch in (2, 16):
            settings = dict(stack=memory.OF_2023) | settings
            counted = RECORD[f"training, the stack of 2023: batch {batch}, {what}, allocated [GiB]"]
            predicted = memory.predict(memory.MIXTRAL_8X7B, batch=batch, **settings).total
            assert predicted == pytest.approx(counted, rel=0.02), (what, batch)


RESERVED = [
    ([(1, 512), (2, MIB)], 2 * MIB),  # small ones share a segment of 2 MiB
    ([(1, 3 * MIB), (2, 9 * MIB)], 20 * MIB),  # middling ones one of 20 MiB
    ([(1, 30 * MIB + 512)], 32 * MIB),  # a large one has its own, in steps of 2 MiB
    ([(1, 32 * MIB), (-1, 32 * MIB), (2, 20 * MIB), (3, 12 * MIB)], 32 * MIB),  # split and used again
    ([(1, 32 * MIB), (2, 40 * MIB), (-2, 0), (-1, 0), (3, 30 * MIB), (4, 40 * MIB)], 72 * MIB),
    ([(1, 12 * MIB), (2, 12 * MIB), (-1, 0), (-2, 0), (3, 24 * MIB)], 48 * MIB),  # segments do not merge
    ([(1, 10 * MIB)], 10 * MIB),  # from 10 MiB on, its own
    ([(1, MIB), (2, MIB + 512)], 22 * MIB),  # 1 MiB is small, and a little more is not
    ([(1, 32 * MIB), (-1, 0), (2, 31 * MIB), (3, MIB + 512)], 52 * MIB),  # a rest of 1 MiB is not split
    ([(1, 32 * MIB), (-1, 0), (2, 512)], 34 * MIB),  # a large block serves no small request
    ([(1, 64 * MIB), (-1, 0), (2, 32 * MIB), (3, 32 * MIB), (-2, 0), (-3, 0), (4, 64 * MIB)], 64 * MIB),
]


@pytest.mark.parametrize("events, reserved", RESERVED)
def test_the_allocator_reserves_as_pytorchs_does(events, reserved):
    assert count.Allocator().play(events) == reserved
