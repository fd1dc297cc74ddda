"""One thread for every test, and what several test files need: the bundled model in 4 bits with its adapter."""

import pytest
import torch

# on the tiny model more threads gain nothing, and on a busy machine they cost much
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def words():
    """The tiny model's tokenizer."""
    from aurora_lib import tokenizer
    from aurora_lib.scale import DATA

    return tokenizer.load(DATA / "tiny")


@pytest.fixture(scope="module")
def model():
    """The tiny model in 4 bits, with the bundled adapter."""
    from aurora_lib import adapters, nf4
    from aurora_lib.scale import DATA

    base = nf4.load(DATA / "tiny", dtype=torch.float32, device="cpu")
    return adapters.load_adapter(base, DATA / "tiny_adapter")
