"""Batched scoring against a plain twin: one question at a time, whole forward, no padding."""

import string
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from palimpsest.errors import NonFiniteError, RequestError, ScoreError, UnknownNameError
from palimpsest.evaluation import answers as answers_module
from palimpsest.evaluation.answers import ask, target_nll
from palimpsest.evaluation.evaluate import Scorer, evaluate, knows, records_frame
from palimpsest.evaluation.metrics import COUNTERFACT_METRICS, METRICS, ZSRE_METRICS
from palimpsest.network.apply import restored
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight
from palimpsest.types import EditRequest, EvalCase, Probe, Record
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "module_cache")

KINDS = [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True)]

# Targets of one token, of several, and of many; prompts from one token to many.
PAIRS = [
    ("The mother tongue of Anna Berg is", "French"),
    ("The mother tongue of Anna Berg is", "English"),
    ("The mother tongue of Anna Berg is", "Seattle"),
    ("The", "Upper Silesian"),
    ("Where does Anna Berg live? She lives in", "Rome"),
    ("Where does Anna Berg live? She lives in", "Paris"),
    ("In the north of the country, near the river, Marie Curie plays the", "violoncello"),
    ("Ω", "γλῶσσα"),
    ("The mother tongue of Anna Berg is", "French"),
]


@pytest.fixture(params=KINDS, ids=["llama", "llama-bos", "gpt2", "gpt2-bos"], scope="module")
def model(request: pytest.FixtureRequest) -> EditableModel:
    kind, bos = request.param
    return tiny_model(kind, seed=3, bos=bos)


def plain(model: EditableModel, prompt: str, target: str) -> tuple[Tensor, Tensor]:
    """The twin: NLL and hit of each target token, from the logits of one unpadded sequence."""
    start = model.tokenizer(prompt)["input_ids"]
    end = model.tokenizer(" " + target, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model.net(torch.tensor([start + end])).logits[0]
    at = range(len(start) - 1, len(start) + len(end) - 1)
    nll = torch.stack([-logits[i].log_softmax(0)[token] for i, token in zip(at, end, strict=True)])
    hits = torch.stack([logits[i].argmax() == token for i, token in zip(at, end, strict=True)])
    return nll.double(), hits


def said(model: EditableModel, template: str) -> tuple[str, str]:
    """An end for the template, such that the model's own next token is a whole word, and that word.

    Without it every argmax metric of a random model would be 0.
    """
    tokenizer = model.tokenizer
    for end in map("".join, product(string.ascii_lowercase, repeat=2)):
        ids = tokenizer(template.format(end))["input_ids"]
        with torch.no_grad():
            top = int(model.net(torch.tensor([ids])).logits[0, -1].argmax())
        word = tokenizer.decode(top)[1:]
        if word.isalpha() and tokenizer(f" {word}", add_special_tokens=False)["input_ids"] == [top]:
            return end, word
    raise AssertionError(f"{model.name} never answers {template!r} with a word")


def case(model: EditableModel, id: str, subject: str) -> EvalCase:
    request = EditRequest("The mother tongue of {} is", subject, "English", id=id)
    (city, one), (river, other) = said(model, "The capital of {}"), said(model, "The river {}")
    return EvalCase(
        id,
        request,
        target_true="French",
        paraphrases=(f"{subject} lives in", f"Where does {subject} live? In"),
        neighbours=(
            Probe(f"The capital of {city}", one),
            Probe("The Space Needle is in", "Seattle"),
            Probe(f"The river {river}", f"{other} of the country"),
        ),
    )


def cases(model: EditableModel) -> list[EvalCase]:
    return [case(model, str(i), name) for i, name in enumerate(["Anna Berg", "Marie Curie", "Zoë", "X"])]


def by_hand(model: EditableModel, case: EvalCase, metric: str) -> float:
    """A metric by the words of its definition."""
    new, true = case.request.target, case.target_true
    what, _, form = metric.partition("_")
    asked = {
        "efficacy": [(case.request.text, new, true)],
        "generalisation": [(text, new, true) for text in case.paraphrases],
        "specificity": [(probe.prompt, probe.target, new) for probe in case.neighbours],
    }[what]
    values = []
    for prompt, wanted, other in asked:
        nll, hits = plain(model, prompt, wanted)
        if form == "":
            values.append(float(nll.mean() < plain(model, prompt, other)[0].mean()))
        else:
            values.append(float(hits.all() if form == "accuracy" else hits.double().mean()))
    return sum(values) / len(values)


def test_nll_and_hits_equal_the_plain_twin(model: EditableModel) -> None:
    answers = ask(model, PAIRS)
    for i, (prompt, target) in enumerate(PAIRS):
        nll, hits = plain(model, prompt, target)
        assert answers.mask[i].sum() == len(nll)
        torch.testing.assert_close(answers.token_nll[i, answers.mask[i]], nll, atol=1e-5, rtol=0)
        assert answers.hits[i, answers.mask[i]].tolist() == hits.tolist()
        assert target_nll(model, PAIRS)[i] == pytest.approx(float(nll.mean()), abs=1e-5)
    assert answers.mask.sum(1).unique().numel() > 2, "the pairs should hold targets of several lengths"
    assert answers.token_nll[answers.mask].std() > 0.5, "predictions should differ"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_and_order_do_not_matter(model: EditableModel, batch_size: int) -> None:
    expected = target_nll(model, PAIRS)
    torch.testing.assert_close(target_nll(model, PAIRS, batch_size), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        target_nll(model, PAIRS[::-1], batch_size).flip(0), expected, atol=1e-5, rtol=0
    )


def test_the_tokenizers_padding_side_and_token_do_not_matter(model: EditableModel) -> None:
    expected = target_nll(model, PAIRS)
    tokenizer = model.tokenizer
    before = tokenizer.padding_side, tokenizer.pad_token
    try:
        for side, token in (("left", None), ("right", "!"), ("left", "!")):
            tokenizer.padding_side, tokenizer.pad_token = side, token
            torch.testing.assert_close(target_nll(model, PAIRS), expected, atol=1e-6, rtol=0)
    finally:
        tokenizer.padding_side, tokenizer.pad_token = before


def test_every_metric_equals_its_definition(model: EditableModel) -> None:
    asked = cases(model)
    records = evaluate(model, asked, tuple(METRICS), batch_size=5)
    expected = [(case.id, metric, by_hand(model, case, metric)) for metric in METRICS for case in asked]
    assert [(record.case, record.metric) for record in records] == [(id, name) for id, name, _ in expected]
    assert [record.value for record in records] == pytest.approx([value for _, _, value in expected])
    found = {name: [record.value for record in records if record.metric == name] for name in METRICS}
    assert 0 < found["specificity_accuracy"][0] < 1, "one neighbour should be said by the model itself"
    assert found["specificity_tokens"][0] > found["specificity_accuracy"][0], "and one in part"
    counts = {record.metric: record.prompts for record in records}
    assert [counts[name] for name in COUNTERFACT_METRICS[:3]] == [1, 2, 3]


def test_inputs_are_run_once_and_the_head_sees_only_target_positions(model: EditableModel) -> None:
    read, asked = [], []
    body = model.net.get_submodule(model.family.norm)
    head = model.net.get_submodule(model.family.head)
    handles = [
        body.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:2].numel())),
        head.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].shape[0])),
    ]
    try:
        answers = ask(model, PAIRS)
    finally:
        for handle in handles:
            handle.remove()
    tokens = [model.tokenizer(" " + target, add_special_tokens=False)["input_ids"] for _, target in PAIRS]
    inputs = [[*model.encode(prompt), *ids[:-1]] for (prompt, _), ids in zip(PAIRS, tokens, strict=True)]
    beginnings = {tuple(ids[:end]) for ids in inputs for end in range(1, len(ids) + 1)}
    assert len(beginnings) < 0.8 * sum(map(len, inputs)), "prompts and their targets should share beginnings"
    assert read == [len(beginnings)]
    assert sum(asked) == int(answers.mask.sum()) == sum(map(len, tokens))


def test_an_edited_model_gives_other_scores_and_the_same_again_when_restored(model: EditableModel) -> None:
    asked = cases(model)
    before = evaluate(model, asked)
    weight = read_weight(model, 2).clone()
    # Every key now writes the output direction of the new object's first token into the residual stream.
    head = model.net.get_submodule(model.family.head).weight
    new = model.tokenizer(" English", add_special_tokens=False)["input_ids"][0]
    try:
        write_weight(model, 2, weight + 3 * head[new][:, None] * torch.ones_like(weight))
        edited = evaluate(model, asked)
        nll, _ = plain(model, *PAIRS[0])
        assert target_nll(model, PAIRS[:1])[0] == pytest.approx(float(nll.mean()), abs=1e-5)
    finally:
        write_weight(model, 2, weight)
    assert [record.value for record in edited] != [record.value for record in before]
    assert evaluate(model, asked) == before


def test_knowing_is_computed_both_ways(model: EditableModel) -> None:
    asked = cases(model)
    subject, word = said(model, "The mother tongue of {}")
    known = EditRequest("The mother tongue of {}", subject, "English")
    asked[1] = replace(asked[1], request=known, target_true=word)
    asked[2] = replace(asked[2], target_true=asked[2].request.target)  # a tie: not known
    prefers, argmax = knows(model, asked), knows(model, asked, how="argmax")
    for case, one, other in zip(asked, prefers, argmax, strict=True):
        true, hits = plain(model, case.request.text, case.target_true)
        new, _ = plain(model, case.request.text, case.request.target)
        assert one == bool(true.mean() < new.mean())
        assert other == bool(hits.all())
    assert argmax[1]
    assert not prefers[2]
    assert len(set(argmax)) == 2


def test_no_prompts_no_record(model: EditableModel) -> None:
    bare = replace(cases(model)[0], id="bare", paraphrases=(), neighbours=())
    full = cases(model)[1]
    records = evaluate(model, [bare, full], ("efficacy", "generalisation", "specificity_tokens"))
    assert [(record.case, record.metric) for record in records] == [
        ("bare", "efficacy"),
        (full.id, "efficacy"),
        (full.id, "generalisation"),
        (full.id, "specificity_tokens"),
    ]
    assert evaluate(model, [bare], ("generalisation",)) == []
    assert evaluate(model, []) == []
    assert target_nll(model, []).tolist() == []


def test_cases_without_a_true_object_have_token_accuracies_only(model: EditableModel) -> None:
    zsre = [replace(case, target_true="") for case in cases(model)]
    records = evaluate(model, zsre, ZSRE_METRICS)
    assert len(records) == 3 * len(zsre)
    assert evaluate(model, zsre, ("specificity",)), "a neighbour has its own true object"
    message = "case '0' has no true object, which efficacy compares with; use accuracy or token metrics"
    with pytest.raises(ScoreError, match=message):
        evaluate(model, zsre)
    with pytest.raises(ScoreError, match=r"case '0' has no true object, which knows\(how='argmax'\)"):
        knows(model, zsre, how="argmax")


@pytest.fixture(scope="module")
def llama() -> EditableModel:
    return tiny_model("llama", seed=3)


def test_names_that_do_not_exist(llama: EditableModel, unchecked: None) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'efficiency'; choose one of: efficacy, "):
        evaluate(llama, cases(llama), ("efficiency",))
    with pytest.raises(
        UnknownNameError, match="unknown way of knowing 'sure'; choose one of: argmax, prefers"
    ):
        knows(llama, cases(llama), how="sure")  # type: ignore[arg-type]


def test_repeated_case_ids_are_refused(llama: EditableModel) -> None:
    twice = [*cases(llama), cases(llama)[1]]
    with pytest.raises(ScoreError, match="1 case ids repeat, for example '1'; give each case its own id"):
        evaluate(llama, twice)


def test_texts_that_cannot_be_asked(llama: EditableModel) -> None:
    with pytest.raises(ScoreError, match="prompt '' gives no token, so nothing predicts its target"):
        target_nll(llama, [("", "French")])
    with pytest.raises(RequestError, match="target ' ' gives no token; give it a text"):
        target_nll(llama, [("The", " ")])
    with pytest.raises(ScoreError, match="batch_size is 0; it must be 1 or more"):
        target_nll(llama, PAIRS, batch_size=0)


def test_an_empty_prompt_can_be_asked_where_texts_have_a_beginning_token() -> None:
    model = tiny_model("llama", seed=3, bos=True)
    expected = plain(model, "", "French")[0].mean()
    assert target_nll(model, [("", "French")])[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_model_that_overflows_is_named_not_scored() -> None:
    model = tiny_model("gpt2", seed=3)
    write_weight(model, 1, torch.full_like(read_weight(model, 1), float("inf")))
    message = (
        r"tiny-gpt2-3 gives NaN or infinity at 9 of 9 targets, first \('The mother .* undo the last edit"
    )
    with pytest.raises(NonFiniteError, match=message):
        target_nll(model, PAIRS)


def test_records_become_a_tidy_table() -> None:
    records = [Record("a", "efficacy", 1.0, 1), Record("b", "efficacy", 0.5, 2)]
    frame = records_frame(records, method="memit", seed=0, moment="end")
    assert list(frame.columns) == ["method", "seed", "moment", "case", "metric", "value", "prompts"]
    assert frame["value"].tolist() == [1.0, 0.5]
    assert set(frame["method"]) == {"memit"}
    empty = records_frame([], method="memit")
    assert list(empty.columns) == ["method", "case", "metric", "value", "prompts"]
    with pytest.raises(
        ScoreError, match=r"columns \['case'\] are fields of every record; choose other names"
    ):
        records_frame(records, case="x")


@pytest.mark.slow
def test_scorer_keeps_both_moments_of_a_sequence() -> None:
    first, later = tiny_model("gpt2", seed=1), tiny_model("gpt2", seed=2)
    asked = cases(first)
    scorer = Scorer(metrics=("efficacy", "specificity"), batch_size=7)
    scorer.after_batch(first, asked[:2])
    scorer.after_batch(later, asked[2:])
    scorer.at_end(later)
    frame = scorer.frame(method="memit")
    assert list(frame.columns[:4]) == ["method", "moment", "batch", "case"]
    rows = frame[frame["metric"] == "efficacy"]
    assert list(zip(rows["moment"], rows["batch"], rows["case"], strict=True)) == [
        *[("after_batch", 0, "0"), ("after_batch", 0, "1"), ("after_batch", 1, "2"), ("after_batch", 1, "3")],
        *[("end", 0, "0"), ("end", 0, "1"), ("end", 1, "2"), ("end", 1, "3")],
    ]
    end = frame[frame["moment"] == "end"].drop(columns=["method", "moment", "batch"])
    expected = records_frame(evaluate(later, asked, ("efficacy", "specificity")))
    pd.testing.assert_frame_equal(end.reset_index(drop=True), expected)


def test_scorer_without_scores_says_so() -> None:
    with pytest.raises(ScoreError, match="nothing was scored yet; call after_batch first"):
        Scorer().frame()


def test_answers_of_a_model_as_it_was_loaded_are_read_from_disk(
    model: EditableModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edited model is asked anew, and so is one that came from elsewhere."""
    plain = ask(model, PAIRS)
    assert not own_cache.exists()
    monkeypatch.setattr(model, "loaded", fingerprint(model))
    first = ask(model, PAIRS)
    run = answers_module._forward
    monkeypatch.setattr(answers_module, "_forward", None)  # to ask again would fail
    again = ask(model, PAIRS)
    for name in ("token_nll", "hits", "mask"):
        assert torch.equal(getattr(first, name), getattr(plain, name))
        assert torch.equal(getattr(again, name), getattr(plain, name))
    with pytest.raises(TypeError):
        ask(model, PAIRS[:2])
    with restored(model, [2]):
        write_weight(model, 2, read_weight(model, 2) + 1)
        with pytest.raises(TypeError):
            ask(model, PAIRS)
        monkeypatch.setattr(answers_module, "_forward", run)
        assert not torch.equal(ask(model, PAIRS).token_nll, plain.token_nll)
    (path,) = own_cache.rglob("*.safetensors")
    path.write_bytes(b"")  # then it is asked again
    assert torch.equal(ask(model, PAIRS).token_nll, plain.token_nll)
    assert path.stat().st_size
