"""Stages of forward and backward passes: values, keys and hidden states, second moments, evaluation."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import counts
from benchmarks.contest import Contest, relative
from benchmarks.inputs import Inputs, without_results
from benchmarks.reference import evaluate as plain_evaluation
from benchmarks.reference import keys as plain_keys
from benchmarks.reference import moments as plain_moments
from benchmarks.reference import values as plain_values
from palimpsest.evaluation.answers import target_nll
from palimpsest.evaluation.evaluate import Evaluation, evaluate
from palimpsest.memory.keys import read_ascending
from palimpsest.memory.moments import SecondMoment, collect
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest, span


def values(inputs: Inputs) -> Contest:
    """Values of many requests, all steps, against one request at a time."""
    sizes, layer = inputs.sizes, inputs.layers[-1]
    requests = [case.request for case in inputs.cases[: sizes.facts]]
    settings = (layer, inputs.targets, inputs.contexts)

    def ours() -> Targets:
        with without_results():
            return optimise_targets(inputs.model, requests, *settings)

    def twin() -> Tensor:
        some = requests[: sizes.twin_facts]
        return torch.stack([plain_values.optimise(inputs.model, r, *settings)[1] for r in some], 1)

    def differences(found: Targets, deltas: Tensor) -> Mapping[str, float]:
        return relative({"deltas": found.deltas[:, : sizes.twin_facts]}, {"deltas": deltas})

    return Contest(
        ours=ours,
        twin=twin,
        differences=differences,
        tolerances={"deltas": 2e-4},
        sizes=f"{sizes.facts} requests, {len(inputs.contexts)} contexts, {inputs.targets.steps} steps, layer "
        f"{layer} of {inputs.model.n_layers}; twin: {sizes.twin_facts} requests, scaled",
        scaled=lambda took: took * sizes.facts / sizes.twin_facts,
        work=counts.of_values(inputs.model, requests, inputs.contexts, layer, inputs.targets.steps),
    )


def keys_and_states(
    model: EditableModel, requests: Sequence[EditRequest], layers: Sequence[int], contexts: Sequence[str]
) -> dict[str, Tensor]:
    """Keys (d_k, n) of several layers and the output of the last one (d_v, n), read as an edit reads them."""
    reads = list(read_ascending(model, requests, layers, contexts))
    return {f"keys {read.layer}": read.keys for read in reads} | {"states": reads[-1].hidden}


def keys(inputs: Inputs) -> Contest:
    """Keys of a batch in every edited layer and its hidden states, against one pass a layer and context."""
    sizes, layers, part = inputs.sizes, inputs.layers, inputs.sizes.twin_keyed
    requests = [case.request for case in inputs.cases[: sizes.keyed]]

    def twin() -> dict[str, Tensor]:
        some = requests[:part]
        found = {
            f"keys {layer}": plain_keys.keys(inputs.model, some, layer, inputs.contexts) for layer in layers
        }
        return found | {"states": plain_keys.hidden(inputs.model, some, layers[-1])}

    def differences(found: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> Mapping[str, float]:
        return relative({name: columns[:, :part] for name, columns in found.items()}, plain)

    names = [*(f"keys {layer}" for layer in layers), "states"]
    return Contest(
        ours=partial(keys_and_states, inputs.model, requests, layers, inputs.contexts),
        twin=twin,
        differences=differences,
        tolerances=dict.fromkeys(names, 1e-5),
        sizes=f"{sizes.keyed} requests, {len(inputs.contexts)} contexts, keys of layers {span(layers)} and "
        f"states of layer {layers[-1]}; twin: {part} requests, scaled",
        scaled=lambda took: took * sizes.keyed / part,
    )


def moments(inputs: Inputs) -> Contest:
    """Second moments of several layers in one truncated pass, against a layer and a window at a time."""
    sizes, layers, model = inputs.sizes, inputs.sizes.moment_layers, inputs.model
    windows, part = inputs.windows(sizes.tokens), inputs.windows(sizes.twin_tokens)

    def differences(_: Mapping[int, SecondMoment], plain: Mapping[int, Tensor]) -> Mapping[str, float]:
        # Sums over all tokens say nothing about the twin's part, so that part is collected once more.
        found = collect(model, layers, part)
        return relative(
            {f"moment {layer}": found[layer].total for layer in layers},
            {f"moment {layer}": plain[layer] for layer in layers},
        )

    return Contest(
        ours=lambda: collect(model, layers, windows),
        twin=lambda: {layer: plain_moments.total(model, layer, part) for layer in layers},
        differences=differences,
        tolerances={f"moment {layer}": 1e-5 for layer in layers},
        sizes=f"layers {span(layers)}, {sizes.tokens:,} tokens; twin: {sizes.twin_tokens:,} tokens, scaled",
        scaled=lambda took: took * sizes.tokens / sizes.twin_tokens,
        work=counts.of_moments(model, layers, windows),
    )


def evaluation(inputs: Inputs) -> Contest:
    """Scores of cases in batches, against a prompt and a target at a time."""
    sizes, model, part = inputs.sizes, inputs.model, inputs.sizes.twin_scored
    cases = inputs.cases[: sizes.scored]

    def differences(found: Evaluation, plain: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        some = cases[:part]
        asked = [(case.request.text, case.request.target) for case in some]
        asked += [(case.request.text, case.target_true) for case in some]
        # Scores are 0 or 1 for a prompt, so the losses behind some of them are compared as well.
        losses = target_nll(model, asked).reshape(2, part)
        return {
            "scores": float((scores_of(found, sizes.scored)[:, :part] - plain[0]).abs().max()),
            **relative({"losses": losses}, {"losses": plain[1]}),
        }

    def ours() -> Evaluation:
        with without_results():
            return evaluate(model, cases)

    return Contest(
        ours=ours,
        twin=lambda: plain_evaluation.scores(model, cases[:part]),
        differences=differences,
        tolerances={"scores": 1e-9, "losses": 1e-5},
        sizes=f"{sizes.scored} cases of 13 prompts; twin: {part} cases, scaled",
        scaled=lambda took: took * sizes.scored / part,
        work=counts.of_evaluation(model, cases),
    )


def scores_of(found: Evaluation, cases: int) -> Tensor:
    """Values of the records (metrics, cases), in the twin's order of metrics."""
    by_metric = {name: [r.value for r in found if r.metric == name] for name in plain_evaluation.METRICS}
    return torch.tensor(list(by_metric.values()), dtype=torch.float64).reshape(len(by_metric), cases)
