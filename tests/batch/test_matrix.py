"""The matrix of a batch: what is refused, and which jobs are due."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml

from palimpsest.batch.jobs import expand, marker_of
from palimpsest.batch.matrix import Matrix, load_matrix
from palimpsest.book.needs import left_out
from palimpsest.book.profiles import find_notebook, load_profile
from palimpsest.book.status import entries, shown
from palimpsest.errors import ProfileError, UnknownNameError
from tests.clone import Clone, make_clone


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


def matrix(**content: object) -> Matrix:
    return Matrix.model_validate({"profiles": ["laptop"], **content})


def test_the_matrix_of_the_project_can_be_read() -> None:
    found = load_matrix()
    assert set(found.moments) <= set(found.profiles)
    assert found.notebooks


def test_every_page_of_the_projects_matrix_is_one_of_its_profiles() -> None:
    found = load_matrix()
    out = {(pair.profile, pair.page) for pair in found.leave_out}
    pairs = [(profile, page) for profile in found.profiles for page in found.notebooks]
    reasons = {
        pair: left_out(load_profile(pair[0]), find_notebook(pair[1])) for pair in pairs if pair not in out
    }
    assert {pair: reason for pair, reason in reasons.items() if reason} == {}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"profiles": []}, "profiles: List should have at least 1 item"),
        (
            {"profiles": ["laptop"], "page": []},
            r"page: Extra inputs are not permitted \(known keys: profiles",
        ),
        ({"profiles": ["laptop"], "seeds": ["1"]}, "seeds.0: Input should be a valid integer"),
        ({"profiles": ["laptop"], "needs": {"mem_mb": 0}}, "needs.mem_mb: Input should be greater than 0"),
        ({"profiles": ["laptop"], "gpus": {"laptop": 0}}, "gpus.laptop: Input should be greater than 0"),
        ({"profiles": ["laptop"], "seeds": [1, 2, 1]}, "seeds names 1 twice; keep one"),
        ({"profiles": ["laptop", "laptop"]}, "profiles names laptop twice"),
        (
            {"profiles": ["laptop"], "moments": {"laptop": {"layers": "4-", "tokens": 5}}},
            "moments.laptop.layers: String should match pattern",
        ),
        ("a text", "file: Input should be a valid dictionary"),
    ],
)
def test_what_is_malformed_is_named(clone: Clone, content: object, fault: str) -> None:
    file = clone.root / "config" / "batch.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ProfileError, match=rf"batch\.yaml: {fault}"):
        load_matrix()


def test_a_file_that_is_missing_or_names_what_does_not_exist(clone: Clone) -> None:
    with pytest.raises(
        ProfileError, match=r"batch\.yaml: cannot be read as YAML .*it lists profiles and pages"
    ):
        load_matrix()
    file = clone.root / "config" / "batch.yaml"
    file.write_text(yaml.safe_dump({"profiles": ["laptop", "lap"]}))
    with pytest.raises(UnknownNameError, match=r"profile in batch\.yaml 'lap'; choose one of: laptop, smoke"):
        load_matrix()
    file.write_text(yaml.safe_dump({"profiles": ["laptop"], "needs_of": {"02_tiny": {}}}))
    with pytest.raises(UnknownNameError, match=r"notebook in batch\.yaml '02_tiny'; choose one of: 01_tiny"):
        load_matrix()


def test_a_run_for_each_seed_is_due_and_the_profiles_own_is_the_profiles(clone: Clone) -> None:
    batch = expand(matrix(seeds=[2, 7]))
    own, other = batch.due
    assert (own.name, other.name) == ("laptop/01_tiny/seed-2", "laptop/01_tiny/seed-7")
    assert own.arguments == ("run", "01_tiny", "--profile", "laptop", "--seed", "2")
    assert own.witness == str(clone.root / "results/laptop/01_tiny.provenance.json")
    assert other.witness == str(clone.root / "results/laptop/seed-7/01_tiny.provenance.json")
    assert own.reason == "not run yet in this profile"
    assert [job.arguments for job in expand(matrix()).due] == [("run", "01_tiny", "--profile", "laptop")]


def test_what_stands_is_not_due_until_its_sources_change(clone: Clone) -> None:
    clone.pretend_run()
    batch = expand(matrix(seeds=[2, 7]))
    assert batch.standing == ("laptop/01_tiny/seed-2",)
    assert [job.name for job in batch.due] == ["laptop/01_tiny/seed-7"]
    clone.write_toy("FACTOR * x", "FACTOR * x + 0")
    assert "code (toy.doubled)" in expand(matrix(seeds=[2])).due[0].reason


def test_a_page_that_is_left_out_has_no_job(clone: Clone) -> None:
    shutil.copyfile(clone.notebook, clone.root / "notebooks" / "02_other.ipynb")
    clone.write_profile("laptop", notebooks={"01_tiny": {"seed": 2}, "02_other": {}})
    out = [{"profile": "laptop", "page": "02_other"}]
    assert [job.name for job in expand(matrix(leave_out=out)).due] == ["laptop/01_tiny/seed-2"]
    assert len(expand(matrix(pages=["02_other"])).due) == 1


def test_a_page_that_the_profile_leaves_out_has_no_job_and_is_named(clone: Clone) -> None:
    shutil.copyfile(clone.notebook, clone.root / "notebooks" / "02_other.ipynb")
    batch = expand(matrix(seeds=[2, 7]))
    assert {job.name.split("/")[1] for job in batch.due} == {"01_tiny"}
    assert batch.left_out == {"laptop/02_other": "not in this profile, which gives no sizes for it"}
    assert batch.standing == ()


def test_moments_are_summed_by_shards_before_the_pages_and_only_where_one_is_due(clone: Clone) -> None:
    clone.write_profile("laptop", defaults={"seed": 2}, notebooks={"01_tiny": {}})
    asked = matrix(moments={"laptop": {"layers": "1-2", "tokens": 90, "shards": 2}})
    one, two, merge, page = expand(asked).due
    assert one.arguments[:6] == ("stats", "tiny", "--layers", "1-2", "--tokens", "90")
    assert two.arguments[-4:-2] == ("--shard", "2/2")
    assert merge.after == (one.name, two.name)
    assert page.after == (merge.name,)
    made = clone.root / "a file"
    made.touch()
    marker_of(one.name).parent.mkdir(parents=True)
    marker_of(one.name).write_text(json.dumps({"files": [str(made)]}))
    assert [job.name for job in expand(asked).due] == [two.name, merge.name, page.name]
    marker_of(merge.name).write_text(json.dumps({"files": [str(made)]}))
    assert [job.name for job in expand(asked).due] == [merge.name, page.name]
    made.unlink()
    assert len(expand(asked).due) == 4
    clone.pretend_run()
    assert expand(asked).due == ()


def on_device(clone: Clone, device: str) -> None:
    """Let the profile compute there, on a page that has a device."""
    notebook = nbformat.read(clone.notebook, as_version=4)
    notebook.cells[1].source += '\ndevice: str = "cpu"  # where'
    nbformat.write(notebook, clone.notebook)
    clone.write_profile("laptop", defaults={"device": device}, notebooks={"01_tiny": {}})


@pytest.mark.parametrize(
    ("device", "given", "whole", "gpus"),
    [
        ("cpu", None, 4, 0),
        ("cuda", None, 4, 1),
        ("cuda:1", 1, None, 1),
        ("auto", None, 4, 4),
        ("auto", 2, 4, 2),
        ("auto", 2, None, 2),
        ("auto", None, 0, 1),
    ],
)
def test_a_job_asks_for_the_gpus_that_its_device_means(
    clone: Clone, device: str, given: int | None, whole: int | None, gpus: int
) -> None:
    """A model that is spread takes all GPUs of the node, or the number that the matrix gives."""
    on_device(clone, device)
    asked = matrix(
        gpus={} if given is None else {"laptop": given},
        moments={"laptop": {"layers": "1", "tokens": 9}},
    )
    assert [job.gpu for job in expand(asked, whole).due] == [gpus] * 3


def test_gpus_that_are_not_known_or_of_no_use_are_named(clone: Clone) -> None:
    on_device(clone, "auto")
    with pytest.raises(ProfileError, match=r"laptop spreads its model .* as 'gpus: \{laptop: 2\}'"):
        expand(matrix())
    on_device(clone, "cuda")
    with pytest.raises(ProfileError, match=r"gives laptop 2 GPUs, and its device is cuda, .*'device: auto'"):
        expand(matrix(gpus={"laptop": 2}), 4)


def test_status_as_json_says_of_each_page_whether_a_run_is_due(clone: Clone) -> None:
    clone.pretend_run()
    (row,) = json.loads(shown(entries("laptop")))
    assert (row["notebook"], row["seed"], row["state"], row["run"]) == ("01_tiny", 2, "fresh", False)
    assert Path(row["witness"]).is_file()
    (other,) = json.loads(shown(entries("laptop", 9)))
    assert (other["seed"], other["state"], other["run"]) == (9, "not run", True)
    clone.write_profile("laptop")
    (left,) = json.loads(shown(entries("laptop")))
    assert (left["state"], left["run"]) == ("left out", False)
    assert left["reason"] == "not in this profile, which gives no sizes for it"
