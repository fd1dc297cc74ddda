"""One thread, no windows, and what several files need: the bundled model in 4 bits with its adapter."""

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# on the tiny model more threads gain nothing, and on a busy machine they cost much
torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path):
    """The scale `tiny`, with a folder of runs of its own."""
    from aurora_lib.course import choose

    return choose({"AURORA_RUNS": str(tmp_path)})


@pytest.fixture(scope="module")
def tokenizer():
    """The tiny model's tokenizer."""
    from aurora_lib.course.scale import DATA
    from aurora_lib.model import load_tokenizer

    return load_tokenizer(DATA / "tiny")


@pytest.fixture(scope="module")
def model():
    """The tiny model in 4 bits, with the bundled adapter."""
    from aurora_lib.course.scale import DATA
    from aurora_lib.model import load_adapter, load_model

    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    return load_adapter(base, DATA / "tiny_adapter")
