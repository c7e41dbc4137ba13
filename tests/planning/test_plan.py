"""The probe, what is known of weights, and what a plan says."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book.model_files import file_of
from palimpsest.editors.settings import editor_settings
from palimpsest.errors import ModelError, ResourceError
from palimpsest.planning.counts import STAGES, Operations
from palimpsest.planning.machine import Machine, device_of, probe
from palimpsest.planning.memory import LIBRARIES
from palimpsest.planning.pages import PAGES
from palimpsest.planning.plan import SHARES, PagePlan, ProfilePlan, plan, seconds_of
from palimpsest.planning.report import report
from palimpsest.planning.weights import DERIVED, Weights, shape_of, weights_of
from palimpsest.studies.cost import SHAPES
from tests.planning.shapes import TINY
from tests.tiny import tiny_model

COMMANDS = CliRunner()
MACHINE = Machine("a machine", "cpu", {"float32": 1e9, "float64": 5e8}, 1e9, 2**34)


def test_seconds_are_operations_over_the_machines_rates() -> None:
    counted = Operations({"values": 6 * 10**9}, {"solve": 10**9}, {"evaluation": 3 * 10**9})
    found = seconds_of(counted, MACHINE, torch.float32)
    assert set(found) == set(STAGES) == set(SHARES)
    assert found["values"] == pytest.approx(6 / 0.6)
    assert found["solve"] == pytest.approx(2 / 0.4)
    assert found["evaluation"] == pytest.approx(3)


def test_the_probe_measures_what_was_asked(one_thread: None) -> None:
    found = probe("cpu", (torch.float32, torch.float64), 0.2)
    assert list(found.products) == ["float32", "float64"]
    assert all(rate > 1e7 for rate in (*found.products.values(), found.bandwidth))
    assert found.memory > 2**29
    with pytest.raises(ModelError, match="device 'cuda:9' cannot be used here"):
        probe("cuda:9", (torch.float32,), 0.2)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says that it sees two GPUs of 16 GiB; nothing is computed on them."""
    made = SimpleNamespace(name="a card", total_memory=2**34)
    machine = "palimpsest.planning.machine"
    monkeypatch.setattr(f"{machine}.one_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(f"{machine}._product_rate", lambda *_: 1e9)
    monkeypatch.setattr(f"{machine}._fastest", lambda *_: 1.0)
    monkeypatch.setattr("torch.zeros", lambda *_, **__: torch.empty(1))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: made)


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cuda:1", 1), ("auto", 2)])
def test_a_model_that_is_spread_has_the_memory_of_all_gpus(device: str, gpus: int, two_gpus: None) -> None:
    found = probe(device, (torch.float32,), 0.1)
    assert (found.name, found.device, found.memory) == ("a card", "cuda", gpus * 2**34)
    large = PagePlan("01_a", seconds={"values": 70.0}, memory={"weights": 3 * 2**33})
    text = report(replace(made_up(large), machine=found))
    assert ("MORE THAN THIS MACHINE HAS (16.0 GiB)" in text) == (gpus == 1)


def test_the_type_of_a_device_and_why_it_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: None)
    assert device_of("cpu") == device_of("auto") == ("cpu", "")
    kind, why = device_of("cuda:99")
    assert kind == "cuda"
    assert why.startswith("device 'cuda:99' cannot be used here: ")
    with pytest.raises(ModelError, match="device 'graphics' cannot be used here"):
        device_of("graphics")


# Weights


def test_weights_of_models_on_a_hub(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.planning.weights.try_to_load_from_cache", lambda *_: None)
    found = weights_of("meta-llama/Meta-Llama-3-8B-Instruct", "cuda")
    assert (found.stored, found.missing, found.dtype) == (16060522496, 16060522496, torch.bfloat16)
    assert found.shape == SHAPES["llama3-8b"]
    assert weights_of("openai-community/gpt2-xl", "cpu").dtype == torch.float32
    assert weights_of("smollm2-135m", "cpu").missing == 98362432
    with pytest.raises(ResourceError, match="model 'no/such' is not on this machine, and config/models/down"):
        weights_of("no/such", "cuda")


@pytest.mark.parametrize("name", DERIVED)
def test_a_model_with_derived_settings_has_as_many_weights_as_are_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palimpsest.planning.weights.try_to_load_from_cache", lambda *_: None)
    known = file_of(name)
    assert known is not None
    assert "derived_from" in known[1]
    for called in known[1]["also"]:
        found = weights_of(called, "cuda")
        assert found.shape == DERIVED[name]
        assert found.stored / found.dtype.itemsize == pytest.approx(found.shape.weights, rel=1e-3)
        asked = editor_settings(called, "memit")["layers"]
        assert (max(asked) < found.shape.layers, found.shape.d_v) == (True, known[1]["shape"]["width"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma", "phi", "gpt_neox"])
def test_weights_of_a_folder(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.net.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    found = weights_of(str(tmp_path), "cpu")
    count = sum(weight.numel() for weight in model.net.parameters() if weight.ndim == 2)
    assert found.missing == 0
    assert found.stored == (tmp_path / "model.safetensors").stat().st_size
    assert found.shape.weights == count
    with pytest.raises(ModelError, match="has none of hidden_size, n_embd; complete it"):
        shape_of("x", {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="it has no weights"):
        weights_of(str(tmp_path), "cpu")


# The plan


def made_up(*pages: PagePlan, device: str = "cpu", missing: int = 0) -> ProfilePlan:
    weights = Weights("tiny", TINY, torch.float32, 2**30, missing)
    machine = Machine("a machine", device, {"float32": 1e9, "float64": 5e8}, 1e9, 2**31)
    return ProfilePlan("laptop", weights, machine, pages)


PAGE = PagePlan("01_a", seconds={"values": 80.0}, memory={"weights": 2**30, "moments": 2**29})


def test_records_of_this_machine_correct_the_other_pages() -> None:
    recorded = PagePlan("02_b", seconds={"values": 380.0}, recorded=100.0, here=True)
    elsewhere = PagePlan("03_c", seconds={"values": 80.0}, recorded=900.0)
    found = made_up(PAGE, recorded, elsewhere)
    assert found.factor == 0.25
    assert [found.expected(page) for page in found.pages] == [25.0, 100.0, 25.0]
    assert made_up(PAGE, elsewhere).factor == 1.0
    text = report(found)
    assert "times are scaled by 0.25" in text
    assert "15 min*" in text
    assert "of another machine" in text


def test_a_report_says_what_is_fetched_and_what_does_not_fit() -> None:
    text = report(made_up(PAGE, PagePlan("02_b", "not in this profile"), missing=3 * 2**30))
    assert "download: 3.0 GiB" in text
    assert "disk: 1.0 GiB: weights 1.0 GiB\n" in text
    assert "memory: 2.0 GiB of the host\n" in text
    assert "MORE THAN" not in text
    assert "02_b: not in this profile" in text
    large = PagePlan("01_a", seconds={"values": 70.0}, memory={"weights": 2**32})
    text = report(made_up(large, device="cuda"))
    assert "memory: 1.5 GiB of the host, 4.0 GiB of the GPU" in text
    assert "MORE THAN THIS MACHINE HAS (2.0 GiB)" in text
    assert "(all is here)" in text


def test_what_two_pages_leave_on_disk_is_there_once() -> None:
    shared = {("moments", "1 of 100"): 2**30}
    first = PagePlan("01_a", disk={**shared, ("results", "01_a"): 2**20})
    second = PagePlan("02_b", disk={**shared, ("results", "02_b"): 2**20, ("values", "02_b"): 2**10})
    parts = made_up(first, second).disk_by_part
    assert parts == {
        "weights": 2**30,
        "moments": 2**30,
        "projectors": 0,
        "values": 2**10,
        "ledgers": 0,
        "results": 2**21,
    }
    assert "disk: 2.0 GiB: weights 1.0 GiB, moments 1.0 GiB, values 0 MiB, results 2 MiB" in report(
        made_up(first, second)
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.planning.plan.probe", lambda *_: MACHINE)


def test_a_plan_for_a_scheduler(quick: None) -> None:
    done = COMMANDS.invoke(
        cli.app, ["plan", "laptop", "--pages", "08_norm_inflation,22_alphaedit_theorems", "--json"]
    )
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert [page["page"] for page in found["pages"]] == ["08_norm_inflation", "22_alphaedit_theorems"]
    assert found["machine"]["name"] == "a machine"
    assert set(found["pages"][0]["seconds_by_stage"]) == set(STAGES)
    assert found["host_memory_bytes"] == LIBRARIES + found["pages"][0]["memory_bytes"]
    assert sum(found["disk_by_part"].values()) == found["disk_bytes"]
    assert found["pages"][0]["seconds_found"] == 0
    assert found["pages"][1]["seconds_by_stage"] == {}
    assert found["pages"][0]["recorded_seconds"] > 0
    assert found["pages"][0]["recorded_here"] is False


def test_a_page_whose_work_is_not_counted_is_named(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PAGES, "08_norm_inflation")
    monkeypatch.setattr("palimpsest.planning.plan.read_provenance", lambda *_: {})
    made = plan("laptop", ["08_norm_inflation", "14_comparison"])
    line = "08_norm_inflation: its work is not counted: planning/pages.py has no row for it in PAGES"
    assert line in report(made).splitlines()
    whole = made.as_dict()
    assert (whole["pages"][0]["seconds"], whole["pages"][0]["memory_bytes"]) == (None, 0)
    assert whole["pages"][0]["not_counted"] in line
    assert whole["seconds"] == whole["pages"][1]["seconds"]
    assert whole["pages"][1]["not_counted"] == ""


def test_a_record_of_such_a_page_corrects_no_other() -> None:
    recorded = PagePlan("23_b", recorded=600.0, here=True, unknown="not counted")
    found = made_up(PAGE, recorded)
    assert found.factor == 1.0
    assert [found.expected(page) for page in found.pages] == [100.0, 600.0]


def test_a_plan_of_a_gpu_profile_names_what_is_left_out(quick: None) -> None:
    text = report(
        plan("gpu-llama3-8b", ["06_alignment", "10_uncertainty", "12_alphaset_tables"], device="cpu")
    )
    assert "06_alignment: not in this profile" in text
    assert "12_alphaset_tables: not for this model: llama3-8b.yaml has no settings for alphaedit_plus" in text
    assert "10_uncertainty  " in text


def test_a_plan_without_its_gpu_has_sizes_and_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked on another machine than the one that is to run it."""
    why = "device 'cuda' cannot be used here: no driver"
    monkeypatch.setattr("palimpsest.planning.plan.device_of", lambda _: ("cuda", why))
    monkeypatch.setattr("palimpsest.planning.plan.probe", lambda *_: pytest.fail("nothing is probed"))
    made = plan("gpu-llama3-8b", ["02_null_space", "10_uncertainty"], device=None)
    assert made.weights.dtype == torch.bfloat16
    whole = made.as_dict()
    assert whole["gpu_memory_bytes"] > whole["host_memory_bytes"] > 16e9
    assert whole["machine"]["not_probed"] == why
    assert [whole["seconds"], *(page["seconds"] for page in whole["pages"])] == [None] * 3
    assert whole["pages"][0]["seconds_by_stage"] == {}
    text = report(made)
    assert f"times: only of runs on record, because {why}" in text
    assert "together: –\n" in text
    assert "MORE THAN" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("10_uncertainty"))
    assert row.split()[-2:] == ["–", "–"]


def test_without_its_device_a_plan_takes_times_on_record() -> None:
    recorded = PagePlan("02_b", memory={"weights": 2**30}, recorded=600.0)
    unknown = PagePlan("03_c", memory={"weights": 2**30})
    found = replace(
        made_up(recorded, unknown), machine=Machine("", "cuda", {}, 0.0, unprobed="it is not here")
    )
    assert [found.expected(page) for page in found.pages] == [600.0, 0.0]
    assert found.as_dict()["seconds"] == 600.0
    assert "times: only of runs on record, because it is not here" in report(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan lap", "unknown profile 'lap'; choose one of: gpu-gemma"),
        ("plan laptop --pages 99_x", "unknown notebook '99_x'; choose one of: 00_try_it"),
        ("plan laptop --pages 21_cost --device cuda:9", "device 'cuda:9' cannot be used here"),
    ],
)
def test_a_mistake_is_one_message(arguments: str, message: str) -> None:
    done = COMMANDS.invoke(cli.app, arguments.split())
    assert done.exit_code == 2
    assert done.stderr.startswith(f"palimpsest: {message}")
