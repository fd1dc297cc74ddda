from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

import aurora_lib
from aurora_lib.course import results
from aurora_lib.course.scale import DATA, ROOT, ScaleError, choose

VARIABLES = ("SCALE", "MODEL", "DATA", "BENCHMARKS", "ADAPTER", "RUNS", "DEVICE", "MINUTES")
PLACES = VARIABLES[1:6]


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that a GPU with so many GiB is there; 0 is none."""

    def pretend(gib, name="NVIDIA H100 80GB HBM3", major=9):
        found = SimpleNamespace(name=name, total_memory=int(gib * 2**30), major=major)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib > 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)

    pretend(0)
    return pretend


@pytest.mark.parametrize("environ", [{}, {"AURORA_SCALE": ""}, {"AURORA_SCALE": "tiny"}])
def test_tiny_is_the_default_and_needs_no_gpu(gpu, environ):
    chosen = choose(environ)
    assert (chosen.name, chosen.device, chosen.revision) == ("tiny", "cpu", None)
    assert chosen.base_model == str(DATA / "tiny") and chosen.runs == ROOT / "runs" / "tiny"
    assert chosen.adapter is None and "no CUDA GPU" in chosen.reason
    assert chosen.loading == dict(revision=None, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("name", ["huge", "Full", " tiny"])
def test_unknown_scale_is_refused_with_the_names_that_exist(gpu, name):
    with pytest.raises(ScaleError, match=r"does not exist\. Set it to 'tiny', 'mid' or 'full'") as refused:
        choose({"AURORA_SCALE": name})
    assert repr(name) in str(refused.value)


def test_full_without_a_gpu_is_refused_with_the_remedy_and_any_gpu_may_try(gpu):
    with pytest.raises(ScaleError, match=r"needs a CUDA GPU, .* finds none.* Unset AURORA_SCALE.*README"):
        choose({"AURORA_SCALE": "full"})
    gpu(31.4, "NVIDIA GeForce RTX 5090")
    assert "RTX 5090 with 31.4 GiB" in choose({"AURORA_SCALE": "full"}).reason


def test_mid_computes_in_16_bits_that_the_card_has_reads_a_sample_and_has_no_adapter_for_all(gpu):
    gpu(14.6, "Tesla T4", major=7)
    chosen = choose({"AURORA_SCALE": "mid"})
    assert (chosen.name, chosen.device, chosen.dtype) == ("mid", "cuda", torch.float16)
    assert "OLMoE" in chosen.base_model and len(chosen.revision) == 40 and chosen.shipped is None
    assert (chosen.minutes, chosen.every, chosen.questions) == (60, 50, 5)
    assert choose({"AURORA_SCALE": "mid", "AURORA_DATA": "rows"}).every == 1, "rows of one's own are all read"
    gpu(22.0, "NVIDIA L4", major=8)
    assert choose({"AURORA_SCALE": "mid"}).dtype == torch.bfloat16


def test_device_and_minutes_may_be_given_and_nothing_else_for_them(gpu):
    chosen = choose({"AURORA_SCALE": "full", "AURORA_DEVICE": "cpu", "AURORA_MINUTES": "0.5"})
    assert (chosen.device, chosen.dtype, chosen.minutes) == ("cpu", torch.float32, 0.5)
    assert "AURORA_DEVICE=cpu" in chosen.reason
    for name, value in dict(DEVICE="cuda:1", MINUTES="soon").items():
        with pytest.raises(ScaleError, match=f"AURORA_{name}='{value}' .*"):
            choose({f"AURORA_{name}": value})
    with pytest.raises(ScaleError, match="no number of minutes"):
        choose({"AURORA_MINUTES": "-1"})


def test_the_authors_adapter_is_for_their_base_alone_and_can_be_asked_for(gpu):
    asked = {"AURORA_SCALE": "full", "AURORA_DEVICE": "cpu", "AURORA_ADAPTER": "released"}
    released = choose(asked).adapter
    assert released == choose(asked).shipped and "wangrongsheng/Aurora@" in released
    assert choose(asked | {"AURORA_MODEL": "/disk/Mixtral-8x7B-Instruct-v0.1"}).adapter == released
    with pytest.raises(ScaleError, match="none is released for this base"):
        choose(asked | {"AURORA_SCALE": "mid"})


def test_full_on_a_gpu_has_the_pinned_base_in_16_bits(gpu):
    gpu(79.2)
    chosen = choose({"AURORA_SCALE": "full"})
    assert (chosen.name, chosen.device) == ("full", "cuda") and chosen.runs.name == "full"
    assert chosen.base_model == "mistralai/Mixtral-8x7B-Instruct-v0.1" and len(chosen.revision) == 40
    assert chosen.loading == dict(revision=chosen.revision, dtype=torch.bfloat16, device="cuda")
    assert "AURORA_SCALE=full" in chosen.reason and "H100" in chosen.reason


def test_a_gpu_without_the_variable_stays_tiny_and_says_what_can_be_tried(gpu):
    gpu(79.2)
    chosen = choose({})
    assert (chosen.name, chosen.device) == ("tiny", "cpu")
    assert "H100" in chosen.reason and "tried with AURORA_SCALE=mid or full" in chosen.reason
    assert "memory budget decides" in chosen.reason


@pytest.mark.parametrize("name", ["tiny", "mid", "full"])
def test_overrides_are_honoured_at_every_scale(gpu, tmp_path, name):
    gpu(79.2)
    places = {key: str(tmp_path / key.lower()) for key in PLACES}
    chosen = choose({"AURORA_SCALE": name} | {f"AURORA_{key}": place for key, place in places.items()})
    assert chosen.base_model == places["MODEL"] and chosen.adapter == places["ADAPTER"]
    assert chosen.revision is None, "the pinned revision belongs to the preset's model only"
    assert (chosen.data, chosen.benchmarks) == (tmp_path / "data", tmp_path / "benchmarks")
    assert chosen.runs == tmp_path / "runs" / name


def test_overriding_paths_may_be_relative_or_in_the_home_folder(gpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    chosen = choose({f"AURORA_{key}": f"~/{key}" for key in PLACES} | {"AURORA_DATA": "rows"})
    assert chosen.data == tmp_path / "rows" and chosen.runs == tmp_path / "home" / "RUNS" / "tiny"
    assert chosen.benchmarks == tmp_path / "home" / "BENCHMARKS"
    assert [chosen.base_model, chosen.adapter] == [f"{tmp_path}/home/{key}" for key in ("MODEL", "ADAPTER")]
    assert choose({"AURORA_MODEL": "a/hub-id"}).base_model == "a/hub-id"
    with pytest.raises(ScaleError, match=r"=hf-mirror.com has no https.*=https://hf-mirror.com and"):
        choose({"HF_ENDPOINT": "hf-mirror.com"})


def test_start_prints_scale_device_versions_and_reason(gpu, monkeypatch, tmp_path, capsys):
    for name in VARIABLES:
        monkeypatch.delenv(f"AURORA_{name}", raising=False)
    monkeypatch.setenv("AURORA_RUNS", str(tmp_path))
    chosen = aurora_lib.start("03")
    assert chosen.runs == tmp_path / "tiny"
    said = capsys.readouterr().out
    assert f"notebook 03: scale 'tiny' on cpu ({chosen.reason})" in said
    for package in ("torch", "transformers", "trl", "peft", "bitsandbytes"):
        assert f"{package} {version(package)}" in said
    assert "Python 3." in said and results.cost("03", "tiny") in said and str(ROOT) not in said
