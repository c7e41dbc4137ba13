"""Counts against numbers made by hand, the probe, and what a plan says."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book.profiles import find_notebook, known_notebooks, load_profile, parameters_for
from palimpsest.errors import ModelError, ResourceError
from palimpsest.planning.counts import (
    PROMPT,
    STAGES,
    SUBJECT,
    Method,
    Operations,
    mean_fact,
    memory,
    operations,
    projector_work,
    solve_work,
)
from palimpsest.planning.machine import Machine, device_of, probe
from palimpsest.planning.plan import SHARES, PagePlan, ProfilePlan, method_of, plan, seconds_of
from palimpsest.planning.report import report
from palimpsest.planning.weights import Weights, shape_of, weights_of
from palimpsest.planning.work import PAGES, Run, Work
from palimpsest.studies.cost import SHAPES, Shape
from tests.tiny import tiny_model

COMMANDS = CliRunner()
TINY = Shape("tiny", layers=4, d_v=8, d_k=16, heads=2, groups=1, d_head=4, vocabulary=50, maps=3, tied=False)
ALONE = Method((1, 2), steps=3, contexts=0, length=10, tokens=100)
MACHINE = Machine("a machine", "cpu", {"float32": 1e9, "float64": 5e8}, 1e9, 2**34)


# Work of pages


def test_every_page_has_a_count_of_its_work() -> None:
    """A page whose work is not counted would be missing in every plan."""
    assert known_notebooks() == list(PAGES)


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu-gpt2-xl"])
def test_work_is_counted_from_the_parameters_of_any_profile(profile: str) -> None:
    setting = load_profile(profile)
    for name in (name for name in setting.listed if name in PAGES):
        parameters = parameters_for(setting, find_notebook(name))
        work = PAGES[name](parameters)
        assert work.values >= 0
        assert all(run.facts > 0 and run.batch > 0 for run in work.runs)
        assert work.layers == 0 or method_of(find_notebook(name), parameters).layers


def test_work_is_what_the_notebooks_print_as_their_cost() -> None:
    """On a laptop, worked out by hand from its sizes."""
    laptop = load_profile("laptop")
    counts = {
        name: PAGES[name](parameters_for(laptop, find_notebook(name)))
        for name in (
            "06_alignment",
            "08_norm_inflation",
            "14_comparison",
            "20_long_horizon",
            "23_causal_tracing",
        )
    }
    # 06: two arms of 100 facts and six of 60 in each of three orders, and seven of 60 in one order.
    assert counts["06_alignment"].values == 3 * (2 * 100 + 6 * 60) + 7 * 60
    # 08: four variants of 300 and 40 facts alone; 3 runs in 3 orders, 9 further and 2 contrasts of 50.
    assert counts["08_norm_inflation"].values == 4 * 340 + 50 * (3 * 3 + 9 + 2)
    assert counts["14_comparison"].values == 3 * (100 + 30)
    assert counts["20_long_horizon"].values == 300
    # 23: twelve facts, two draws, every third layer: each of three kinds at twelve tokens.
    assert counts["23_causal_tracing"].by_layer == 12 * 2 * 3 * 12 // 3


# Operations


def test_positions_of_a_mean_fact() -> None:
    at = mean_fact(ALONE)
    # One row of the prompt, and one of the KL term: the subject and two tokens.
    assert at.whole.run == PROMPT + SUBJECT + 3
    assert at.moving.run == (PROMPT - SUBJECT) + 3
    assert at.moving.heads == 2
    assert at.subjects.run == SUBJECT + 1
    assert at.own_pairs == 5 * 6 // 2 + 3 * 4 // 2
    more = mean_fact(Method((1, 2), contexts=2, length=10))
    assert more.moving.run == 3 * (PROMPT - SUBJECT) + 3
    assert more.whole.run == at.whole.run + 2 * (PROMPT + 10)


def test_operations_by_hand() -> None:
    """A layer has 8·4·(2·2 + 2·1) + 3·8·16 = 576 weights, a pair 2·2·4 = 16, the head 50·8 = 400."""
    assert (TINY.layer, TINY.pair, TINY.head) == (576, 16, 400)
    work = Work(2, runs=(Run("alphaedit_aligned", 2, 1),), asked=3, read=10, drawn=5)
    found = operations(TINY, work, ALONE, weight_bytes=4)
    # Layers 0 to 2 on 22 positions with 78 + 55 pairs, the upper one on the 14 fixed ones with 28 + 28.
    once = 3 * (576 * 22 + 16 * 133) + (576 * 14 + 16 * 56)
    # Eight moving positions: 78 − 28 and 55 − 28 pairs, two places of the head, 15 + 6 own pairs.
    ahead = 576 * 8 + 16 * 77 + 400 * 2
    back = ahead + 16 * 21
    assert found.model["values"] == 2 * (once + 3 * ahead + 2 * back)
    assert found.model["keys"] == 2 * 2 * 3 * (576 * 8 + 16 * 36)
    assert found.model["statistics"] == 3 * (576 * 100 + 16 * (100 * 257 // 2))
    assert found.exact["statistics"] == 2 * 100 * 16 * 16 // 2
    prompt = 4 * (576 * 12 + 16 * 78) + 400
    text = 4 * (576 * 10 + 16 * (10 * 257 // 2)) + 400 * 10
    assert found.model["evaluation"] == 3 * prompt + text
    each = operations(TINY, Work(asked=3, by_layer=2, layers=0), ALONE, weight_bytes=4)
    assert each.model["evaluation"] == (3 + 2 * 4) * prompt
    assert found.moved["evaluation"] == 5 * TINY.weights * 4
    assert found.exact["projector"] == 2 * projector_work(TINY) == 2 * int(4.5 * 16**3)


def test_steps_of_a_run_by_hand() -> None:
    # Aligned: the second fact meets the first. n (2 N (d_k + d_v) + 3 N²/2 + d_v d_k), N = 0 and 1.
    assert solve_work(TINY, Run("alphaedit_aligned", 2, 1)) == 128 + (2 * 24 + 3 // 2 + 128)
    assert solve_work(TINY, Run("alphaedit_naive", 2, 1)) == 2 * 128
    # MEMIT factors its moment, at each step if each is a problem of its own.
    assert solve_work(TINY, Run("memit_naive", 2, 1)) == 2 * 128 + 2 * 16**3 // 6
    assert solve_work(TINY, Run("memit_aligned", 3, 3)) == 3 * 128 + 16**3 // 6


def test_memory_by_hand() -> None:
    found = memory(TINY, Work(2, runs=(Run("alphaedit_aligned", 4, 1),)), ALONE, torch.bfloat16)
    assert found["weights"] == 2 * (4 * 576 + 2 * 400)
    assert found["moments"] == 2 * 16 * 16 * 8
    assert found["projectors"] == 16 * 16 * 8
    assert found["factors"] == 3 * 16 * 16 * 8
    assert found["ledgers"] == 2 * (8 * 4 * (2 * 16 + 3 * 8 + 4 + 1) + 2 * 8 * 16)
    assert memory(TINY, Work(layers=0, projected=False), ALONE, torch.float32)["moments"] == 0


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


def test_the_type_of_a_device_and_why_it_is_not_here() -> None:
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_weights_of_a_folder(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.net.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    found = weights_of(str(tmp_path), "cpu")
    count = sum(weight.numel() for weight in model.net.parameters())
    assert found.missing == 0
    assert found.stored == (tmp_path / "model.safetensors").stat().st_size
    assert found.shape.weights == pytest.approx(count, rel=0.05)
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


PAGE = PagePlan("01_a", seconds={"values": 70.0}, memory={"weights": 2**30, "moments": 2**29})


def test_records_of_this_machine_correct_the_other_pages() -> None:
    recorded = PagePlan("02_b", seconds={"values": 370.0}, recorded=100.0, here=True)
    elsewhere = PagePlan("03_c", seconds={"values": 70.0}, recorded=900.0)
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
    assert "disk: 1.5 GiB" in text
    assert "memory: 1.5 GiB of the host\n" in text
    assert "MORE THAN" not in text
    assert "02_b: not in this profile" in text
    large = PagePlan("01_a", seconds={"values": 70.0}, memory={"weights": 2**32})
    text = report(made_up(large, device="cuda"))
    assert "memory: 1.0 GiB of the host, 4.0 GiB of the GPU" in text
    assert "MORE THAN THIS MACHINE HAS (2.0 GiB)" in text
    assert "(all is here)" in text


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
    assert found["host_memory_bytes"] == found["pages"][0]["memory_bytes"]
    assert found["pages"][1]["seconds_by_stage"] == {}
    assert found["pages"][0]["recorded_seconds"] > 0
    assert found["pages"][0]["recorded_here"] is False


def test_a_page_whose_work_is_not_counted_is_named(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PAGES, "08_norm_inflation")
    monkeypatch.setattr("palimpsest.planning.plan.read_provenance", lambda *_: {})
    made = plan("laptop", ["08_norm_inflation", "14_comparison"])
    line = "08_norm_inflation: its work is not counted: planning/work.py has no row for it in PAGES"
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
    found = replace(made_up(recorded, unknown), machine=Machine("", "cuda", {}, 0.0, 0, "it is not here"))
    assert [found.expected(page) for page in found.pages] == [600.0, 0.0]
    assert found.as_dict()["seconds"] == 600.0
    assert "times: only of runs on record, because it is not here" in report(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan lap", "unknown profile 'lap'; choose one of: gpu-gpt-j-6b"),
        ("plan laptop --pages 99_x", "unknown notebook '99_x'; choose one of: 00_try_it"),
        ("plan laptop --pages 21_cost --device cuda:9", "device 'cuda:9' cannot be used here"),
    ],
)
def test_a_mistake_is_one_message(arguments: str, message: str) -> None:
    done = COMMANDS.invoke(cli.app, arguments.split())
    assert done.exit_code == 2
    assert done.stderr.startswith(f"palimpsest: {message}")
