"""Named sequences: every row builds, says what its name says, and runs."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest import paths
from palimpsest.algebra.postprocess import Prune, Rect
from palimpsest.editors import Rome, base, editor_for, named_sequences
from palimpsest.editors.named_sequences import configuration, sequence_of, stepwise, tuned
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.settings import alphaset_settings, regimes
from palimpsest.editors.steps import steps
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import read_weight
from tests.editing import CONTEXTS, REQUESTS, same_bits, snapshot, stub_texts
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "smollm2-135m"
ROWS = named_sequences.configurations()
THE_SAME = {frozenset({"alphaedit_naive", "latest_simplified"})}
"""Rows that differ in name only: Labyrinth Eq. 3 is AlphaEdit without past keys."""

every_row = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics and values of the unedited model are the same for all rows."""
    return tmp_path_factory.mktemp("cache")


@every_row
def test_every_row_builds_on_the_settings_of_its_host(name: str) -> None:
    built, host = configuration(name, MODEL), editor_for(ROWS[name]["host"], MODEL)
    assert isinstance(built, Sequential)
    for field in ("layers", "targets", "contexts", "statistics_tokens"):
        assert getattr(built, field) == getattr(host, field)
    own = {key: value for key, value in ROWS[name].items() if key != "host"}
    for field in ("preserve_weight", "ridge", "rule", "threshold"):
        if hasattr(host, field) and field not in own:
            assert getattr(built, field) == getattr(host, field)
    for field, value in own.items():
        if field != "post" and value != named_sequences.FROM_MEMIT:
            assert getattr(built, field) == value


@every_row
def test_names_say_what_a_row_retains_and_feeds_back(name: str) -> None:
    built, (family, *how) = configuration(name, MODEL), name.split("_")
    assert isinstance(built.post, {"rect": Rect, "rect20": Rect, "prune": Prune}.get(family, type(None)))
    if family == "rect20":
        assert built.post == Rect(keep=0.2)
    assert built.feedback == (built.post is not None and how[-1] in ("aligned", "projected"))
    assert (built.post is not None and built.post.at_end) == ("end" in how)
    if family != "latest":
        assert built.retain == ("none" if {"naive", "end"} & {*how} else "all")
    projected = family in ("alphaedit", "both", "latest") or "projected" in how
    assert (built.rule is not None) == (projected and how != ["memit"])
    assert built.values == "once"
    assert built.reads == "edited"


def test_memorise_the_latest() -> None:
    found = {
        name: configuration(f"latest_{name}", MODEL) for name in ("simplified", "full", "exact", "memit")
    }
    memit, alphaedit = (configuration(f"{name}_aligned", MODEL) for name in ("memit", "alphaedit"))
    weight = memit.preserve_weight
    assert weight > 0
    assert found["simplified"] == replace(alphaedit, retain="none")
    assert found["full"] == replace(alphaedit, retain="none", preserve_weight=weight, anchor="start")
    assert found["exact"] == replace(alphaedit, retain="latest", preserve_weight=weight)
    assert found["memit"] == replace(memit, retain="latest")


def test_no_two_rows_are_the_same_unless_said_so() -> None:
    """Names that mean one run would be counted as two methods."""
    alike: dict[Sequential, set[str]] = defaultdict(set)
    for name in ROWS:
        alike[configuration(name, MODEL)].add(name)
    assert {frozenset(names) for names in alike.values() if len(names) > 1} == THE_SAME


@pytest.mark.slow
@every_row
def test_every_row_runs(name: str, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches on a tiny model, in other layers and with another line through its spectrum."""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(shared_cache))
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
    changes: dict[str, Any] = {
        "layers": (0, 1),
        "targets": TargetSettings(steps=2),
        "statistics_tokens": 300,
    }
    built = configuration(name, MODEL, **changes)
    if built.rule is not None:
        built = replace(built, rule="energy", threshold=0.5)
    model = tiny_model("llama")
    before, weights = snapshot(model), []
    for _ in steps(model, built, [REQUESTS[:1], REQUESTS[1:2]]):
        weights.append(read_weight(model, 1).clone())
    assert len(weights) == 2 + ends(built)
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert not torch.equal(weights[0], weights[1])
    assert same_bits(model, before)


def ends(sequence: Sequential) -> bool:
    return sequence.post is not None and sequence.post.at_end


def test_overrides_come_last() -> None:
    built = configuration("rect_aligned", MODEL, layers=(7,), post={"kind": "rect", "keep": 0.1}, ridge=2)
    assert (built.layers, built.post, built.ridge, built.retain) == ((7,), Rect(keep=0.1), 2, "all")
    other = configuration("alphaedit_naive", MODEL, preserve_weight=named_sequences.FROM_MEMIT)
    assert other.preserve_weight == configuration("memit_naive", MODEL).preserve_weight


def test_with_strength_multiplies_the_penalty_that_there_is() -> None:
    memit, alphaedit = (configuration(f"{name}_aligned", MODEL) for name in ("memit", "alphaedit"))
    for factor in (0.5, 10.0):
        stronger = named_sequences.with_strength(memit, factor)
        assert stronger == replace(memit, preserve_weight=factor * memit.preserve_weight)
        stronger = named_sequences.with_strength(alphaedit, factor)
        assert stronger == replace(alphaedit, ridge=factor * alphaedit.ridge)
    assert named_sequences.with_strength(memit, 1) == memit


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown sequence 'memit_alined'; choose .*memit_aligned"):
        configuration("memit_alined", MODEL)
    with pytest.raises(UnknownNameError, match=r"unknown model with settings .* 'nothing'"):
        configuration("memit_aligned", "nothing")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "memit_naive",
            {"lambda": 3},
            r"the sequence memit_naive for smollm2-135m: .*\nlambda\n",
        ),
        ("memit_naive", {"ridge": -1}, r"ridge\n.*greater than or equal to 0"),
        ("memit_naive", {"feedback": True}, "feedback needs a problem that goes on"),
        ("memit_aligned", {"anchor": "start"}, "anchor='start' needs retain='none'"),
        ("memit_aligned", {"reads": "unedited", "values": "each_step"}, "do not fit reads='unedited'"),
        ("prune_aligned", {"post": {"kind": "prune", "when": "end"}}, "cannot be pruned at the end"),
        ("rect_aligned", {"post": {"kind": "rectangle"}}, "post\n"),
    ],
)
def test_a_bad_setting_is_named(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        configuration(name, MODEL, **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memit_naive: {", r"sequences\.yaml is not YAML: "),
        ("- memit_naive", r"sequences\.yaml holds no mapping; it needs a row for each sequence"),
        ("", r"sequences\.yaml holds no mapping"),
        ("good: {host: memit}\nodd: memit\nbad: {retain: all}", r"odd, bad need a host, the editor whose"),
    ],
)
def test_a_faulty_file_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "sequences.yaml").write_text(text)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    with pytest.raises(ProfileError, match=message):
        configuration("memit_naive", MODEL)


def test_a_row_with_an_unknown_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_sequences, "configurations", lambda: {"odd": {"host": "memmit"}})
    with pytest.raises(ProfileError, match=r"smollm2-135m\.yaml has no settings for editor 'memmit'"):
        configuration("odd", MODEL)


def test_tuned_is_the_sequence_with_what_the_search_chose() -> None:
    chosen = alphaset_settings(MODEL)
    found = tuned("memit_naive", MODEL)
    assert found == configuration("memit_naive", MODEL, **chosen["memit_naive"])
    assert found != configuration("memit_naive", MODEL)
    assert tuned("memit_naive", MODEL, preserve_weight=7.0).preserve_weight == 7.0
    plus = tuned("alphaedit_plus", MODEL)
    assert plus == editor_for("alphaedit_plus", MODEL, **chosen["alphaedit_plus"])
    # No search, no section: the settings on file.
    assert tuned("alphaedit_plus", "gpt2-xl") == editor_for("alphaedit_plus", "gpt2-xl")
    assert tuned("rect_aligned", MODEL) == configuration("rect_aligned", MODEL)


def test_tuned_takes_any_editor_of_weights() -> None:
    for name in ("memit", "alphaedit", "rome", "ft", "ft_l"):
        assert tuned(name, MODEL) == editor_for(name, MODEL, **alphaset_settings(MODEL).get(name, {}))


def test_tuned_needs_something_that_writes_weights_and_a_model_with_settings() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown sequence or editor of weights 'ike'; .*") as refused:
        tuned("ike", MODEL)
    assert {"memit_aligned", "alphaedit_plus", "rome"} < set(refused.value.known)
    assert "ike" not in refused.value.known
    with pytest.raises(UnknownNameError, match=r"unknown editor 'nothing'"):
        tuned("nothing", MODEL)
    with pytest.raises(UnknownNameError, match=r"unknown model with settings .* 'nowhere'"):
        tuned("memit_aligned", "nowhere")


def test_a_run_of_a_page_names_sequence_values_and_strength() -> None:
    plain = configuration("memit_naive", MODEL, values="each_step")
    found = sequence_of("memit_naive each_step 0.5", MODEL)
    assert found == replace(plain, preserve_weight=0.5 * plain.preserve_weight)


@pytest.mark.parametrize("run", ["memit_naive each_step", "memit_naive each_step strong", ""])
def test_a_run_without_its_three_parts_is_refused(run: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(f"run {run!r}: write 'sequence values strength'")):
        sequence_of(run, MODEL)


@pytest.mark.parametrize("regime", list(regimes(MODEL)))
def test_a_stepwise_editor_takes_a_regime_whether_it_is_a_sequence_or_not(regime: str) -> None:
    """Each has the regime's settings, in its own layers unless the regime names some; ROME has its state."""
    made = stepwise("memit_naive", MODEL, regime)
    assert isinstance(made, Sequential)
    assert made == configuration("memit_naive", MODEL, regime, values="each_step")
    assert made.values == "each_step"
    assert stepwise("memit_naive", MODEL) == configuration("memit_naive", MODEL, values="each_step")
    assert stepwise("rome", MODEL) == editor_for("rome", MODEL)
    if "layers" in regimes(MODEL)[regime]["every"]:  # several layers: ROME edits one
        with pytest.raises(ProfileError, match="rome"):
            stepwise("rome", MODEL, regime)
        return
    rome = stepwise("rome", MODEL, regime)
    assert isinstance(rome, Rome)
    assert rome.layers == editor_for("rome", MODEL).layers
    assert rome.targets == replace(made.targets, reference="value")
    assert rome.contexts == made.contexts


def test_stepwise_needs_something_that_writes_weights_and_a_known_regime() -> None:
    for name in ("ike", "nothing"):
        with pytest.raises(UnknownNameError, match=name):
            stepwise(name, MODEL)
    with pytest.raises(UnknownNameError, match="regime"):
        stepwise("rome", MODEL, "nowhere")
