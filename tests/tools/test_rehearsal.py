import pytest

from aurora_lib.course.scale import ROOT
from tools.rehearse import standin
from tools.rehearse.hub import Hub
from tools.rehearse.rehearsal import environment, rehearse


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Stand-ins on a hub, and a folder for what is fetched."""
    folder = tmp_path_factory.mktemp("rehearsal")
    standin.build(folder / "hub", layers=2, rows=60, questions=1, steps=0)
    with Hub(folder / "hub") as hub:
        yield hub.url, folder


@pytest.mark.parametrize(("scale", "number"), [("mid", "00"), ("full", "02")])
def test_a_notebook_runs_against_the_standins_without_warning(served, scale, number):
    url, folder = served
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    made = rehearse(path, environment(url, scale, folder), folder / "executed")
    ours = "is not the file of the paper's stack"  # our rows under the released names
    assert (made.errors, [line for _, line in made.warnings if ours not in line]) == ([], [])
