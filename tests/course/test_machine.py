import threading

import pytest
import torch

from aurora_lib.course import machine


def test_counted_tensors_are_their_bytes_while_they_live():
    old = torch.ones(1000)
    with machine.Tensors([old]) as seen:
        held = torch.ones(1000) + old
        view = held[:500]
        assert seen.now == held.nbytes
        del held
        assert seen.now == view.untyped_storage().nbytes()
        del view
    assert seen.now == 0 and seen.peak == 2 * old.nbytes


def test_profile_counts_the_tensors_of_a_block_and_keeps_its_phases():
    with machine.profile("cpu", interval=0.001) as seen:
        seen.mark("allocate")
        held = torch.ones(50_000_000)  # 200 MB
        seen.mark("done")
        held + held  # gone before anybody looks
    assert seen.peak * machine.GIB == 2 * held.nbytes and seen.used[-1] == held.nbytes
    assert [phase for _, phase in seen.marks] == ["allocate", "done"]
    assert len(seen.seconds) == len(seen.used) == len(seen.reserved) > 2
    assert machine.peak_rss() >= 0.95 * held.nbytes / machine.GIB


def test_profile_stops_its_thread_on_an_exception():
    before = threading.active_count()
    with pytest.raises(KeyError), machine.profile("cpu"):
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before
