"""AlphaEdit+: AlphaEdit with a relaxed projector, weighted past keys, smoothed targets (anonymous authors).

    min over Δ = ΔP_mod:   ‖ΔK − R_t‖² + β‖ΔK_pΛ^½‖² + λ‖Δ‖²                              Eq. 15 and 18

P_mod    P plus those protected eigenvectors of C₀ that lower the objective enough
         (`palimpsest.algebra.admission.admit`)
Λ        1 − the largest absolute cosine of a past key with the new keys
         (`palimpsest.algebra.conflict.conflict_weights`)
R_t      residuals with norm above τ are multiplied by c(t) (`palimpsest.algebra.smoothing`), t = 0 … T;
         which of the T + 1 candidates is used follows from their scores (``Smoothing.choose``)

Each of the three parts can be switched off; without all three and with β = 1 this is AlphaEdit. (Lemma 4 says
when it is AlphaEdit anyway.)

Differences from the paper: by default the scores of all candidates are compared, where Algorithm 1 stops at
the first small change and the text at the first decrease; the search uses the whole residual, not half
targets.
Differences from the released code: admitting a direction costs an N × N update, not a d_k × d_k solve; the
caller passes the score function, where the code scores on the prompts that it is evaluated on afterwards; β
is not multiplied by the layer's position unless ``past_weight_grows``.

Where Λ, β or P_mod change from step to step, a sequence no longer equals the edit of all facts at once.
``past="rewrite"`` restores this equality: each step solves the one-time problem over all facts, with the
weights and directions of this step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field, replace
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.admission import Candidates, admit, candidates
from palimpsest.algebra.conflict import conflict_weights
from palimpsest.algebra.smoothing import hard_part, scales, scan
from palimpsest.algebra.solve import LeastSquares, Solution, share_left
from palimpsest.editors.alphaedit import AlphaEdit, AlphaEditState
from palimpsest.editors.base import Prepared, Score, State, edit_layers, joined, values_on
from palimpsest.errors import ProfileError
from palimpsest.network.apply import WeightDelta, restored
from palimpsest.network.model import EditableModel, read_weight, write_weight
from palimpsest.types import EditRequest


@dataclass(frozen=True, config={"extra": "forbid"})
class Perturbation:
    """Settings of the relaxed projector; the fields are arguments of `palimpsest.algebra.admission.admit`."""

    threshold: float = Field(default=3e-4, ge=0)
    relative: bool = True
    block: int = Field(default=10, ge=1)
    order: Literal["ascending", "descending", "gain"] = "ascending"
    limit: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, config={"extra": "forbid"})
class Smoothing:
    """Settings of target smoothing: how far the residuals of hard facts are scaled down.

    Attributes:
        steps: T; there are T + 1 candidate scales, from half the residual to all of it.
        threshold: τ, norm of the whole residual (not of a layer's share) above which a fact is hard.
        scan: try the candidates at every edited layer (released), or at the last one only, whose residual
            includes what lower layers left unwritten.
        select: which wordings the score uses, a name from `palimpsest.evaluation.smoothing_score`; it is part
            of the record.
        choose: ``best``: the candidate with the best score, of equal ones the one that shortens least.
            ``first_stop``: from half the residual up, the first candidate whose score differs from that of
            the one before by at most ``tolerance``, else the last (Algorithm 1). Where lower layers or later
            steps make up for a shortened target, scores hardly differ: the first rule then shortens nothing,
            the second nearly everything.
        tolerance: δ of Algorithm 1, in shares of tokens; for ``first_stop`` only.
    """

    steps: int = Field(default=10, ge=1)
    threshold: float = Field(default=30.0, ge=0)
    scan: Literal["every_layer", "last_layer"] = "every_layer"
    select: Literal["validation", "edit_prompts", "as_published_code"] = "validation"
    choose: Literal["best", "first_stop"] = "best"
    tolerance: float = Field(default=2e-4, ge=0)


@plain_dataclass(frozen=True, repr=False)
class PlusState(AlphaEditState):
    """State of a sequence of AlphaEdit+ edits, in addition to that of AlphaEdit.

    Attributes:
        score: scores the smoothing candidates; passed by the caller.
        candidates: layer -> protected eigenvectors of C₀.
        unedited: layer -> W_0 (d_v, d_k), in the model's precision.
        values: layer -> values (d_v, N) of the past keys; kept with ``past="rewrite"`` only.
    """

    score: Score | None = None
    candidates: Mapping[int, Candidates] = field(default_factory=dict)
    unedited: Mapping[int, Float[Tensor, "d_v d_k"]] = field(default_factory=dict)
    values: Mapping[int, Float[Tensor, "d_v n"]] = field(default_factory=dict)


@dataclass(frozen=True, config={"extra": "forbid"})
class AlphaEditPlus(AlphaEdit):
    """AlphaEdit+; the fields are its settings, in addition to those of AlphaEdit.

    Attributes:
        perturbation: settings of the relaxed projector; None uses P unchanged.
        weighting: weight past keys by Λ; False gives all of them weight 1.
        smoothing: settings of target smoothing; None writes the whole residual of every fact.
        past_weight: β.
        past_weight_grows: multiply β by the position of the layer, 1 for the first (released code).
        past: ``penalise`` changes of the output at past keys (published), or ``rewrite`` all past facts with
            the new ones.
        optimised: optimise values on the current model, ``each_step`` (published), or on the unedited one,
            ``once``.
    """

    keeps = PlusState
    printed = "AlphaEdit+"
    noted = ("admitted", "protected", "largest_eigenvalue", "weights_norm", "weights_least", "hard", "scale")

    threshold: float = Field(default=0.015, ge=0)
    perturbation: Perturbation | None = Perturbation()
    weighting: bool = True
    smoothing: Smoothing | None = Smoothing()
    past_weight: float = Field(default=100.0, ge=0)
    past_weight_grows: bool = False
    past: Literal["penalise", "rewrite"] = "penalise"
    optimised: Literal["each_step", "once"] = "each_step"

    @property
    def score_rule(self) -> str | None:
        """Which wordings smoothing scores; None without smoothing."""
        return self.smoothing.select if self.smoothing else None

    def begin(self, prepared: Prepared | None = None, score: Score | None = None) -> PlusState:
        """State of a sequence before its first edit; smoothing needs a score."""
        begun: Any = super().begin(prepared)
        return replace(begun, score=score)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, PlusState]:
        """Write all requests in one batch; see `palimpsest.edit`.

        Raises:
            ProfileError: if smoothing has no score, if ``past="rewrite"`` lacks the values of past facts, or
                if the rule protects every direction.
        """
        at = self._started(model, self.own(state))
        step = _Step(self, model, requests, at)
        once = self.optimised == "once"
        values = values_on(
            model,
            requests,
            self.layers[-1],
            self.targets,
            at.prepared.contexts,
            at.unedited if once else None,
            at.prepared.known if once else None,
        )
        edit, keys = edit_layers(model, requests, self.layers, values, at.prepared.contexts, step.update)
        notes = {**edit.notes, **step.noted_in(edit.deltas)}
        past = joined(at.past, keys) if self.keep_past else {}
        kept = joined(at.values, step.reached) if self.keep_past and self.past == "rewrite" else {}
        return replace(edit, notes=notes), replace(at, past=past, values=kept)

    def _started(self, model: EditableModel, state: PlusState) -> PlusState:
        """Complete the state: missing entries are computed from the current model."""
        if self.smoothing and state.score is None:
            raise ProfileError(
                "smoothing chooses a step length by a score, and the state has none; pass "
                "state=PlusState(score=...), for example with score_by('edit_prompts'), or set "
                "smoothing=None"
            )
        if self.past == "rewrite" and state.past.keys() != state.values.keys():
            raise ProfileError(
                "past='rewrite' needs the values of all past facts, and this sequence was begun without; "
                "set it from the first edit on"
            )
        at = replace(state, prepared=self.prepare(model, state.prepared))
        if not at.unedited:
            at = replace(at, unedited={i: read_weight(model, i).clone() for i in self.layers})
        if self.perturbation and not at.candidates:
            moments, kept = at.prepared.moments, at.prepared.projectors
            at = replace(at, candidates={i: candidates(moments[i], kept[i]) for i in self.layers})
        return at


class _Step:
    """One batch: computes the update of each layer and collects notes for the record."""

    def __init__(
        self, editor: AlphaEditPlus, model: EditableModel, requests: Sequence[EditRequest], at: PlusState
    ) -> None:
        self.editor, self.model, self.requests, self.at = editor, model, requests, at
        self.reached: dict[int, Tensor] = {}
        self.notes: dict[str, dict[int, Any]] = {}
        self.remarks: list[str] = []

    def update(self, layer: int, keys: Tensor, residual: Tensor) -> Solution:
        """Update of one layer; lower layers of the model are edited already."""
        weight = read_weight(self.model, layer).to(torch.float64, copy=True)  # candidates overwrite it later
        origin = weight if self.editor.past == "penalise" else self.at.unedited[layer].double()
        problem = self._relaxed(layer, self._problem(layer, keys, residual, weight, origin))
        short = hard_part(residual, self._threshold(layer))
        hard = torch.zeros_like(problem.residual)
        hard[:, : keys.shape[1]] = short
        found = scan(problem, hard)
        scale = self._chosen(layer, short, lambda c: origin + found.at(c))
        delta = origin + found.at(scale) - weight
        self.reached[layer] = weight @ keys + residual - (1 - scale) * short
        return Solution(delta, found.condition, share_left(delta, keys, residual))

    def _problem(
        self, layer: int, keys: Tensor, residual: Tensor, weight: Tensor, origin: Tensor
    ) -> LeastSquares:
        """New and past facts as one problem in W − ``origin``, the current or the unedited weight."""
        past = self.at.past.get(layer, keys[:, :0])
        kept = weight @ past if self.editor.past == "penalise" else self.at.values.get(layer, residual[:, :0])
        root = self._weights(layer, past, keys).sqrt()
        wanted = [residual + (weight - origin) @ keys, (kept - origin @ past) * root]
        return LeastSquares(
            torch.cat([keys, past * root], 1),
            torch.cat(wanted, 1),
            ridge=self.editor.ridge,
            projector=self.at.prepared.projectors[layer],
        )

    def _weights(self, layer: int, past: Tensor, keys: Tensor) -> Tensor:
        """Weights βΛ of the past keys (N,)."""
        editor = self.editor
        ones = torch.ones(past.shape[1], dtype=torch.float64, device=past.device)
        weights = conflict_weights(past, keys).to(ones) if editor.weighting else ones
        self._note("weights_norm", layer, float(weights.norm()))
        self._note("weights_least", layer, float(weights.min()) if len(weights) else 1.0)
        place = editor.layers.index(layer) + 1 if editor.past_weight_grows else 1
        return editor.past_weight * place * weights

    def _relaxed(self, layer: int, problem: LeastSquares) -> LeastSquares:
        """The problem with the admitted directions added to its projector."""
        if self.editor.perturbation is None:
            return problem
        pool, settings = self.at.candidates[layer], asdict(self.editor.perturbation)
        found = admit(problem, pool, **settings)
        count = len(found.admitted)
        self._note("admitted", layer, count)
        self._note("protected", layer, len(pool.eigenvalues))
        self._note(
            "largest_eigenvalue", layer, float(pool.eigenvalues[found.admitted].max()) if count else 0.0
        )
        if count in (0, len(pool.eigenvalues)):
            self.remarks.append(
                f"layer {layer}: threshold {settings['threshold']:g} admits {count} of "
                f"{len(pool.eigenvalues)} directions"
            )
        return replace(problem, projector=found.projector)

    def _threshold(self, layer: int) -> float:
        """τ for a layer's share of the residual."""
        if self.editor.smoothing is None:
            return float("inf")
        return self.editor.smoothing.threshold / (len(self.editor.layers) - self.editor.layers.index(layer))

    def _chosen(self, layer: int, hard: Tensor, weight_at: Callable[[float], Tensor]) -> float:
        """The scale that the rule chooses by the candidates' scores; 1 where there is nothing to smooth."""
        settings = self.editor.smoothing
        if settings is None or self.at.score is None:
            return 1.0
        count = int((hard.norm(dim=0) > 0).sum())
        self._note("hard", layer, count)
        if not count:
            self.remarks.append(
                f"layer {layer}: no residual is longer than {settings.threshold:g}: nothing is smoothed"
            )
        skipped = settings.scan == "last_layer" and layer != self.editor.layers[-1]
        scale = 1.0
        if count and not skipped:
            scored: list[tuple[float, float]] = []
            with restored(self.model, [layer]):
                for candidate in scales(hard, settings.steps):
                    write_weight(self.model, layer, weight_at(candidate))
                    scored.append((self.at.score(self.model, self.requests), candidate))
                    if settings.choose == "first_stop" and _settled(scored, settings.tolerance):
                        break
            scale = scored[-1][1] if settings.choose == "first_stop" else max(scored)[1]
            self._note("scores", layer, [value for value, _ in scored])
        self._note("scale", layer, scale)
        return scale

    def _note(self, name: str, layer: int, value: Any) -> None:
        self.notes.setdefault(name, {})[layer] = value

    def noted_in(self, deltas: Mapping[int, Tensor]) -> dict[str, Any]:
        """Notes of the edit: results of each part, and ‖ΔW‖ and ‖W − W_0‖ (Frobenius) of each layer."""
        total = {
            i: read_weight(self.model, i) + delta - self.at.unedited[i].double()
            for i, delta in deltas.items()
        }
        norms = {
            "step_norm": {i: float(delta.norm()) for i, delta in deltas.items()},
            "total_norm": {i: float(moved.norm()) for i, moved in total.items()},
        }
        return {**self.notes, **norms, "remarks": self.remarks}


def _settled(scored: Sequence[tuple[float, float]], tolerance: float) -> bool:
    """Whether the last two scores differ by at most the tolerance."""
    return len(scored) > 1 and abs(scored[-1][0] - scored[-2][0]) <= tolerance
