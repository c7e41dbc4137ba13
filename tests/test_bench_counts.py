"""Counted multiply-adds against those that torch counts, by hand, and as a tree of token prefixes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import counts, inputs
from benchmarks.reference.forward import first, layer_of
from palimpsest.network.tokens import encode_around_subject, encode_target
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_forward_pass_costs_what_torch_counts() -> None:
    model, t = tiny_model("llama"), 11
    model.net.set_attn_implementation("eager")
    cost = counts.costs(model)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.net(input_ids=torch.arange(t)[None])
    by_module = flops.get_flop_counts()
    layer = sum(by_module["LlamaForCausalLM.model.layers.1"].values()) // 2
    head = sum(by_module["LlamaForCausalLM.lm_head"].values()) // 2
    # Eager attention multiplies all t² pairs, of which causal attention needs t(t + 1)/2.
    assert counts.forward(cost, 1, counts.Positions(t, t * t)) == layer
    assert cost.head * t == head
    assert counts.behind(0, t) == counts.Positions(t, t * (t + 1) // 2)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_backward_pass_costs_what_torch_counts(layer: int) -> None:
    model, t = tiny_model("llama"), 9
    model.net.set_attn_implementation("eager")
    cost, above = counts.costs(model), model.n_layers - 1 - layer
    delta = torch.zeros(32, requires_grad=True)
    handle = layer_of(model, layer).register_forward_hook(lambda _, __, output: first(output) + delta)
    loss = model.net(input_ids=torch.arange(t)[None]).logits.square().sum()
    with FlopCounterMode(display=False) as flops:
        loss.backward()
    handle.remove()
    pairs = t * t
    expected = counts.backward(cost, above, counts.Positions(t, pairs), pairs) + cost.head * t
    assert flops.get_total_flops() == 2 * expected


def test_work_of_values_by_hand() -> None:
    """One request in one context: one forward pass more than backward passes, each above the layer alone."""
    model, layer = tiny_model("llama"), 1
    request = inputs.quick().cases[0].request
    target = encode_target(model.tokenizer, request.target)
    ids, end = encode_around_subject(model.tokenizer, request.prompt, request.subject)
    _, kl_end = encode_around_subject(model.tokenizer, "{} is a", request.subject)
    cost, above = counts.costs(model), model.n_layers - 2
    width = len(ids) + len(target) - 1 - end
    seen = counts.behind(end, end + width) + counts.behind(kl_end, kl_end + 1)
    own = width * (width + 1) // 2 + 1
    ahead = counts.forward(cost, above, seen) + cost.head * (len(target) + 1)
    back = counts.backward(cost, above, seen, own) + cost.head * (len(target) + 1)
    one, two, three = (counts.of_values(model, [request], [""], layer, steps) for steps in (1, 2, 3))
    assert two - one == three - two == ahead + back
    assert one > ahead


def test_work_of_moments_by_hand() -> None:
    """Two windows: every layer below in whole, the highest without its edited map, half of each K Kᵀ."""
    model, windows = tiny_model("llama"), [[1, 2, 3], [4]]
    cost = counts.costs(model)
    below = 2 * (cost.layer * 4 + cost.pair * (6 + 1))
    highest = (cost.layer - 32 * 64) * 4 + cost.pair * (6 + 1)
    assert counts.of_moments(model, [0, 2], windows) == below + highest + 2 * 4 * (64 * 65 // 2)


def test_work_of_an_evaluation_does_not_grow_with_what_is_asked_twice() -> None:
    model, cases = tiny_model("llama"), inputs.quick().cases[:2]
    assert len(counts.questions(cases[0])) == 26
    once = counts.of_evaluation(model, cases)
    assert counts.of_evaluation(model, [*cases, *cases]) == once
    assert counts.of_evaluation(model, cases[:1]) < once


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_distinct_positions_are_those_of_a_tree_of_prefixes(rows: list[list[int]]) -> None:
    found = counts.distinct(rows)
    alone = [counts.behind(0, len(row)) for row in rows]
    assert max(one.run for one in alone) <= found.run <= sum(one.run for one in alone)
    assert found == counts.distinct([*rows, *(row[:2] for row in rows)])
    apart = counts.distinct([[10 + number, *row] for number, row in enumerate(rows)])
    assert apart == counts.Positions(
        sum(len(row) + 1 for row in rows), sum(counts.behind(0, len(row) + 1).pairs for row in rows)
    )
