"""Stages of whole edits: a sequence of batches with its scores, and the command ``palimpsest edit``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.command import Job, edited_folder, peak_of
from benchmarks.contest import Contest, relative
from benchmarks.inputs import MODEL, Inputs, without_results
from benchmarks.reference.edit import AlignedSequence
from benchmarks.stages.passes import scores_of
from palimpsest.editors.base import Prepared
from palimpsest.editors.named_sequences import configuration
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.moments import key_statistics
from palimpsest.memory.settings import ContextSettings
from palimpsest.memory.values import optimise_targets
from palimpsest.network.apply import commit, restored
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EvalCase, span
from palimpsest.workbench.edited_model import DEFAULT_SEQUENCE, EditedModel, sequence

Outcome = tuple[dict[int, Tensor], list[Tensor]]
"""Layer -> ΔW of all batches (d_v, d_k), and scores (metrics, cases) of each batch, then of all cases."""


def aligned(inputs: Inputs) -> Sequential:
    """AlphaEdit, aligned: the settings on file, or with those of a tiny model."""
    if inputs.model_source:
        return configuration("alphaedit_aligned", MODEL)
    return Sequential(
        layers=inputs.layers,
        ridge=1.0,
        rule="energy",
        threshold=0.5,
        statistics_tokens=200,
        targets=inputs.targets,
    )


def sequence_with_scores(
    model: EditableModel, editor: Sequential, prepared: Prepared, batches: Sequence[Sequence[EvalCase]]
) -> Outcome:
    """Write the batches with the library, score each right after it was written and all at the end."""
    unedited = {layer: read_weight(model, layer).clone() for layer in editor.layers}
    scores, done = [], []
    state: Prepared | SequenceState = prepared
    with without_results(), restored(model, editor.layers):
        for cases in batches:
            delta, state = editor.edit(model, [case.request for case in cases], state)
            commit(model, delta)
            scores.append(scores_of(evaluate(model, cases), len(cases)))
            done += list(cases)
        scores.append(scores_of(evaluate(model, done), len(done)))
        moved = {i: read_weight(model, i).double() - unedited[i].double() for i in editor.layers}
    return moved, scores


def end_to_end(inputs: Inputs) -> Contest:
    """A sequence of batches with its scores, against one request and one prompt at a time.

    Contexts, second moments and projectors are given to both.
    """
    sizes, model, editor = inputs.sizes, inputs.model, aligned(inputs)
    contexts = inputs.contexts[: editor.contexts.count + 1]
    read = key_statistics(model, editor.layers, editor.statistics_tokens, _texts(inputs))
    prepared = editor.prepare(model, Prepared(contexts, {layer: c.value for layer, c in read.items()}))
    eye = torch.eye(prepared.projectors[editor.layers[0]].dim, dtype=torch.float64)
    dense = {layer: prepared.projectors[layer].apply(eye) for layer in editor.layers}
    twin = AlignedSequence(model, editor.layers, dense, editor.ridge, editor.targets, contexts)
    whole, part = (_batches(inputs, size) for size in (sizes.batch, sizes.twin_batch))
    growth = sizes.batch / sizes.twin_batch

    def differences(_: Outcome, plain: Outcome) -> Mapping[str, float]:
        # Other batches give other weights, so the twin's batches are written with the library too.
        moved, scores = sequence_with_scores(model, editor, prepared, part)
        names = {layer: f"update {layer}" for layer in editor.layers}
        apart = [float((a.mean(1) - b.mean(1)).abs().max()) for a, b in zip(scores, plain[1], strict=True)]
        return {
            **relative({names[i]: d for i, d in moved.items()}, {names[i]: d for i, d in plain[0].items()}),
            "mean scores": max(apart),
        }

    return Contest(
        ours=lambda: sequence_with_scores(model, editor, prepared, whole),
        twin=lambda: twin.run(part),
        differences=differences,
        tolerances={f"update {layer}": 5e-4 for layer in editor.layers} | {"mean scores": 2e-2},
        sizes=f"{sizes.batches} batches of {sizes.batch} facts, layers {span(editor.layers)}, "
        f"{len(contexts)} contexts, scored after each batch and at the end; twin: batches of "
        f"{sizes.twin_batch}, scaled but for its solves",
        scaled=lambda took: (took - twin.solving) * growth + twin.solving,
        repeats=False,
    )


def _batches(inputs: Inputs, size: int) -> list[Sequence[EvalCase]]:
    return [inputs.cases[start * size : (start + 1) * size] for start in range(inputs.sizes.batches)]


def _texts(inputs: Inputs) -> Sequence[str] | None:
    """Texts of the second moments: the embedded ones, known to the cache, or those of a tiny model."""
    return None if inputs.model_source else inputs.texts


def edit(inputs: Inputs) -> Contest:
    """The command ``palimpsest edit`` at batch 1, against the optimisation of its facts' values alone.

    The ratio is the share of the command's time that its values take, and 1/1.3 is asked for. Second moments
    are in the cache, contexts are sampled by the command.
    """
    sizes, home = inputs.sizes, TemporaryDirectory()
    requests = [case.request for case in inputs.cases[: max(sizes.written, sizes.remembered)]]
    job = Job(requests, inputs.model_source or _saved(inputs.model, home.name), *_of_command(inputs))
    editor = sequence(job.editor, MODEL)
    contexts = sample_contexts(
        inputs.model, editor.contexts.count, editor.contexts.length, editor.contexts.seed
    )
    if job.texts is None:
        key_statistics(inputs.model, editor.layers, editor.statistics_tokens)
    last, some = editor.layers[-1], requests[: sizes.written]

    def ours() -> EditedModel:
        assert Path(home.name).is_dir()  # holds the tiny model as long as the stage runs
        return edited_folder(job.first(sizes.written))

    def twin() -> dict[str, Tensor]:
        with without_results():
            found = [optimise_targets(inputs.model, [r], last, editor.targets, contexts, 1) for r in some]
        return {"deltas": torch.cat([one.deltas for one in found], 1).double()}

    def differences(edited: EditedModel, alone: Mapping[str, Tensor]) -> Mapping[str, float]:
        # The ledger's residual is δ / layers, because keys and states are read on the unedited model.
        ledger = edited.ledgers[last]
        deltas = (ledger.values - ledger.base.double() @ ledger.keys) * len(editor.layers)
        return relative({"deltas": deltas[:, [ledger.ids.index(r.id) for r in some]]}, alone)

    return Contest(
        ours=ours,
        twin=twin,
        differences=differences,
        tolerances={"deltas": 2e-4},
        sizes=f"{sizes.written} facts at batch 1, {DEFAULT_SEQUENCE}, layers {span(editor.layers)}, with "
        "loading of the model and saving of the folder; twin: the library's values alone; peak_mb: a whole "
        f"process with {sizes.remembered} facts",
        peak=lambda: peak_of(job.first(sizes.remembered)),
        repeats=False,
    )


def _of_command(inputs: Inputs) -> tuple[Sequential | str, Sequence[str] | None]:
    """Sequence and texts of the command: its defaults, or settings and texts of a tiny model."""
    if inputs.model_source:
        return DEFAULT_SEQUENCE, None
    small = Sequential(
        layers=inputs.layers,
        preserve_weight=20.0,
        reads="unedited",
        statistics_tokens=200,
        targets=inputs.targets,
        contexts=ContextSettings(count=0),
    )
    return small, inputs.texts


def _saved(model: EditableModel, folder: str) -> str:
    """Write a model as a folder in Hugging Face format, and return the folder."""
    model.net.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
