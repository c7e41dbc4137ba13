"""AlphaEdit+: AlphaEdit with a relaxed projector, weighted past keys, smoothed targets (anonymous authors).

    min over Δ = ΔP_mod:   ‖ΔK − R_t‖² + β‖ΔK_pΛ^½‖² + λ‖Δ‖²                              Eq. 15 and 18

P_mod    P and those protected eigenvectors of C₀ that lower the objective enough (`projector.admit`)
Λ        1 − the largest absolute cosine of a past key with the new ones (`conflict.conflict_weights`)
R_t      residuals longer than τ are cut to c(t) of their length (`smoothing`); among the T + 1 candidates
         the one with the best score stays

Each part can be left out; without all three and with β = 1 this is AlphaEdit (Lemma 4: when it is anyway).

Departures. From the paper: the scores of all candidates are compared, where Algorithm 1 stops at the first
small change and the text at the first fall; the search uses the whole residual, not half targets. From the
released code: a direction costs an N × N update, not a d_k × d_k solve; the score is a function that the
caller gives, where the code asks the prompts it is then evaluated on; β is not multiplied by the layer's
place unless ``past_weight_grows``. Where Λ, β or P_mod change from step to step, a sequence is no longer the
edit of all facts at once; ``past="rewrite"`` restores that: each step solves the one-time problem over all
facts, with this step's weights and directions.
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
from palimpsest.editors.alphaedit import AlphaEdit
from palimpsest.editors.base import State, edit_layers, joined, start
from palimpsest.errors import ProfileError
from palimpsest.network.apply import WeightDelta, restored
from palimpsest.network.model import EditableModel, read_weight, write_weight
from palimpsest.types import EditRequest

Score = Callable[[EditableModel, Sequence[EditRequest]], float]
"""How well a model, edited for the moment, answers for these requests; higher is better."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Perturbation:
    """How far the projector is relaxed; fields as `palimpsest.algebra.admission.admit` has them."""

    threshold: float = Field(default=3e-4, ge=0)
    relative: bool = True
    block: int = Field(default=10, ge=1)
    order: Literal["ascending", "descending", "gain"] = "ascending"
    limit: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, config={"extra": "forbid"})
class Smoothing:
    """How far the targets of hard facts are shortened.

    Attributes:
        steps: T; there are T + 1 candidates, from half the residual to all of it.
        threshold: τ, length of the whole residual (not of a layer's share) above which a fact is hard.
        scan: try the candidates at every edited layer (released) or at the last one only, where what lower
            layers left out is asked for again.
        select: where the score's wordings come from; a name for the record, see
            `palimpsest.evaluation.smoothing_score`.
    """

    steps: int = Field(default=10, ge=1)
    threshold: float = Field(default=30.0, ge=0)
    scan: Literal["every_layer", "last_layer"] = "every_layer"
    select: Literal["validation", "edit_prompts", "as_published_code"] = "validation"


@plain_dataclass(frozen=True)
class PlusState(State):
    """What a sequence of AlphaEdit+ carries on, beside what AlphaEdit does.

    Attributes:
        score: of the candidates of smoothing; the caller gives it.
        candidates: layer -> protected eigenvectors of C₀.
        unedited: layer -> W_0 (d_v, d_k), in the model's precision.
        values: layer -> values (d_v, N) of the past keys, where ``past="rewrite"`` needs them.
    """

    score: Score | None = None
    candidates: Mapping[int, Candidates] = field(default_factory=dict)
    unedited: Mapping[int, Float[Tensor, "d_v d_k"]] = field(default_factory=dict)
    values: Mapping[int, Float[Tensor, "d_v n"]] = field(default_factory=dict)


@dataclass(frozen=True, config={"extra": "forbid"})
class AlphaEditPlus(AlphaEdit):
    """AlphaEdit+ with its settings; those of AlphaEdit come first.

    Attributes:
        perturbation: how P is relaxed; None keeps it.
        weighting: Λ on past keys; False weighs them alike.
        smoothing: how hard targets are shortened; None writes them whole.
        past_weight: β.
        past_weight_grows: multiply β by the place of the layer, 1 for the first (released code).
        past: ``penalise`` movement at past keys (published) or ``rewrite`` all past facts with the new ones.
        optimised: values on the model as it is, ``each_step`` (published), or ``once`` on the unedited one.
    """

    threshold: float = Field(default=0.015, ge=0)
    perturbation: Perturbation | None = Perturbation()
    weighting: bool = True
    smoothing: Smoothing | None = Smoothing()
    past_weight: float = Field(default=100.0, ge=0)
    past_weight_grows: bool = False
    past: Literal["penalise", "rewrite"] = "penalise"
    optimised: Literal["each_step", "once"] = "each_step"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[WeightDelta, PlusState]:
        """Write all requests in one batch; see `palimpsest.edit`.

        Raises:
            ProfileError: if smoothing has no score to choose by, or the rule protects every direction.
        """
        at = self._started(model, state)
        step = _Step(self, model, requests, at)
        edit, keys = edit_layers(
            model,
            requests,
            self.layers,
            self.targets,
            at.contexts,
            step.update,
            *((at.unedited, at.known) if self.optimised == "once" else ()),
        )
        notes = {**edit.notes, **step.noted(edit.deltas)}
        past = joined(at.past, keys) if self.keep_past else {}
        values = joined(at.values, step.reached) if self.keep_past and self.past == "rewrite" else {}
        return replace(edit, notes=notes), replace(at, past=past, values=values)

    def finish(self, model: EditableModel, state: State) -> None:
        """Nothing waits for the end of a run, unlike in `palimpsest.editors.sequential.Sequential`."""

    def _started(self, model: EditableModel, state: State | None) -> PlusState:
        """The given state; what it lacks is taken from the model as it is."""
        basic = start(model, state, self.contexts, self.layers, self.statistics_tokens)
        projectors = self._projectors(basic)
        if isinstance(basic, PlusState):
            at = replace(basic, projectors=projectors)
        else:
            at = PlusState(basic.contexts, basic.moments, projectors, basic.past, basic.known)
        if self.smoothing and at.score is None:
            raise ProfileError(
                "smoothing chooses a step length by a score, and the state has none; pass "
                "state=PlusState(score=...), for example with selection.score_by('edit_prompts'), or set "
                "smoothing=None"
            )
        if self.past == "rewrite" and at.past.keys() != at.values.keys():
            raise ProfileError(
                "past='rewrite' needs the values of all past facts, and this sequence was begun without; "
                "set it from the first edit on"
            )
        if not at.unedited:
            at = replace(at, unedited={i: read_weight(model, i).clone() for i in self.layers})
        if self.perturbation and not at.candidates:
            found = {i: candidates(at.moments[i], at.projectors[i]) for i in self.layers}
            at = replace(at, candidates=found)
        return at


class _Step:
    """One batch: the update of each layer, and what is worth a record."""

    def __init__(
        self, editor: AlphaEditPlus, model: EditableModel, requests: Sequence[EditRequest], at: PlusState
    ) -> None:
        self.editor, self.model, self.requests, self.at = editor, model, requests, at
        self.reached: dict[int, Tensor] = {}
        self.notes: dict[str, dict[int, Any]] = {}
        self.remarks: list[str] = []

    def update(self, layer: int, keys: Tensor, residual: Tensor) -> Solution:
        """The update of one layer of the model, whose lower layers are edited already."""
        weight = read_weight(self.model, layer).to(torch.float64, copy=True)  # candidates are written over it
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
        """The batch beside the past, counted from a weight: the present one, or the unedited one."""
        past = self.at.past.get(layer, keys[:, :0])
        kept = weight @ past if self.editor.past == "penalise" else self.at.values.get(layer, residual[:, :0])
        root = self._weights(layer, past, keys).sqrt()
        wanted = [residual + (weight - origin) @ keys, (kept - origin @ past) * root]
        return LeastSquares(
            torch.cat([keys, past * root], 1),
            torch.cat(wanted, 1),
            ridge=self.editor.ridge,
            projector=self.at.projectors[layer],
        )

    def _weights(self, layer: int, past: Tensor, keys: Tensor) -> Tensor:
        """βΛ of the past keys (N,)."""
        editor = self.editor
        ones = torch.ones(past.shape[1], dtype=torch.float64, device=past.device)
        weights = conflict_weights(past, keys).to(ones) if editor.weighting else ones
        self._note("weights_norm", layer, float(weights.norm()))
        place = editor.layers.index(layer) + 1 if editor.past_weight_grows else 1
        return editor.past_weight * place * weights

    def _relaxed(self, layer: int, problem: LeastSquares) -> LeastSquares:
        """The problem with the directions that are worth it added to its projector."""
        if self.editor.perturbation is None:
            return problem
        pool, settings = self.at.candidates[layer], asdict(self.editor.perturbation)
        found = admit(problem, pool, **settings)
        count = len(found.admitted)
        self._note("admitted", layer, count)
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
        """The scale with the best score, of equal ones the largest: the least is left out."""
        settings, score = self.editor.smoothing, self.at.score
        if settings is None or score is None:
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
            with restored(self.model, [layer]):
                scored = []
                for candidate in scales(hard, settings.steps):
                    write_weight(self.model, layer, weight_at(candidate))
                    scored.append((score(self.model, self.requests), candidate))
            scale = max(scored)[1]
            self._note("scores", layer, [value for value, _ in scored])
        self._note("scale", layer, scale)
        return scale

    def _note(self, name: str, layer: int, value: Any) -> None:
        self.notes.setdefault(name, {})[layer] = value

    def noted(self, deltas: Mapping[int, Tensor]) -> dict[str, Any]:
        """For the record of the edit: what each part did, and lengths."""
        total = {
            i: read_weight(self.model, i) + delta - self.at.unedited[i].double()
            for i, delta in deltas.items()
        }
        norms = {
            "step_norm": {i: float(delta.norm()) for i, delta in deltas.items()},
            "total_norm": {i: float(moved.norm()) for i, moved in total.items()},
        }
        return {**self.notes, **norms, "remarks": self.remarks}
