"""What a causal trace found: effects of restored states, their means over facts, and layers to edit.

The indirect effect of a state is the probability of the answer in the corrupted run with that state restored,
less that in the corrupted run; the total effect is the probability in the clean run less that in the
corrupted one (Meng et al. 2022, Sec. 2.1). Both are means over the draws of the noise. Tokens before the
subject have no effect, because attention is causal, and are left out.

Every token has one role. The last token of the prompt, whose output predicts the answer, is ``last`` and
nothing else, and a subject of one token is its own last token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.results.intervals import bootstrap_table
from palimpsest.types import Shown, span

ROLES = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "after_first": "first token after it",
    "after_further": "further tokens",
    "last": "last token",
}
"""Role -> its name in print, in the order of a prompt (Meng et al. 2022, Fig. 2)."""

RULE = "the layers of the window whose restored MLP outputs at the last subject token have the highest effect"
"""How layers to edit are suggested."""


def role_of(token: int, first: int, last: int, length: int) -> str:
    """Role of a token of a prompt, one of ROLES.

    Args:
        token: its position, from the subject on.
        first: position of the subject's first token.
        last: position of the subject's last token.
        length: tokens of the prompt.
    """
    if token == length - 1:
        return "last"
    if token == last:
        return "subject_last"
    if token == first:
        return "subject_first"
    if token < last:
        return "subject_middle"
    return "after_first" if token == last + 1 else "after_further"


def window_around(layer: int, window: int, layers: int) -> range:
    """Layers of a window around one of them; at both ends of the network it is cut (ROME's released code)."""
    return range(max(0, layer - window // 2), min(layers, layer + (window + 1) // 2))


@dataclass(frozen=True, repr=False)
class CausalTrace(Shown):
    """Effects of restored states on the answers of some facts.

    Attributes:
        model: name of the model.
        layers: number of its layers.
        window: layers around each whose MLP or attention outputs were restored together.
        noise: standard deviation of the noise in units of ``spread``.
        spread: standard deviation of the embeddings of the subjects' tokens, over tokens and dimensions.
        samples: draws of the noise for each fact.
        seed: of the noise, which for a fact depends on no other fact, and of the bootstrap.
        facts: a row for each traced fact: ``case``, ``prompt``, ``subject``, ``answer``, its probabilities
            ``clean`` and ``corrupted``, and ``total``, the total effect.
        left_out: id of each fact that was not traced -> why.
        effects: a row for each fact, kind, layer and token: ``case``, ``kind``, ``layer`` (the middle of a
            window), ``token`` (position in the prompt), ``text``, ``role`` and ``effect``, in [-1, 1].
    """

    model: str
    layers: int
    window: int
    noise: float
    spread: float
    samples: int
    seed: int
    facts: pd.DataFrame
    left_out: Mapping[str, str]
    effects: pd.DataFrame

    def shown(self) -> dict[str, object]:
        """Model, facts, total effect and, where MLPs were restored, the suggested layers."""
        told: dict[str, object] = {"model": self.model, "facts": len(self.facts)}
        told |= {"left out": len(self.left_out)} if self.left_out else {}
        told["total effect"] = f"{self.facts['total'].mean():.3f}"
        if self.effects["kind"].eq("mlp").any():
            told["suggested layers"] = span(self.suggested())
        return told

    def by_role(self) -> pd.DataFrame:
        """Average indirect effect of each kind, role and layer, with 95 % bootstrap intervals over facts.

        Returns:
            ``kind``, ``role``, ``layer``, ``mean``, ``low`` and ``high`` (NaN for a single fact), and ``n``,
            the facts that have such a token; a fact's tokens of one role are averaged first.
        """
        by = ["kind", "role", "layer"]
        each = self.effects.groupby([*by, "case"], sort=False, as_index=False)["effect"].mean()
        each["n"] = each.groupby(by)["case"].transform("size")
        alone = each[each["n"] < 2].rename(columns={"effect": "mean"})
        parts = [alone[[*by, "mean", "n"]]]
        if (each["n"] > 1).any():
            parts.append(bootstrap_table(each[each["n"] > 1], by, self.seed, value="effect", resamples=2000))
        found = pd.concat(parts, ignore_index=True)
        found["role"] = pd.Categorical(found["role"], list(ROLES), ordered=True)
        found = found.sort_values(["kind", "role", "layer"], ignore_index=True).astype({"role": str})
        return found.reindex(columns=[*by, "mean", "low", "high", "n"])

    def suggested(self, kind: str = "mlp") -> tuple[int, ...]:
        """Layers to edit; see RULE.

        Args:
            kind: whose effect is compared; a kind that was traced.

        Raises:
            UnknownNameError: if it was not traced.
            ScoreError: if every subject ends its prompt, so that its last token is the one that predicts.
        """
        known = sorted(self.effects["kind"].unique())
        if kind not in known:
            raise UnknownNameError("kind that was traced", kind, known)
        own = self.effects[self.effects["kind"].eq(kind) & self.effects["role"].eq("subject_last")]
        if own.empty:
            raise ScoreError(
                "no subject is followed by a token of its prompt; give prompts that go on after it"
            )
        means = own.groupby("layer", as_index=False)["effect"].mean()
        best = int(means["layer"].iloc[int(means["effect"].argmax())])
        return tuple(window_around(best, 1 if kind == "state" else self.window, self.layers))

    def as_dict(self) -> dict[str, Any]:
        """Settings, facts, averages and suggested layers, for JSON; NaN is null."""
        numbers = ("model", "layers", "window", "noise", "spread", "samples", "seed")
        means = self.by_role().astype(object)
        told = {name: getattr(self, name) for name in numbers}
        if self.effects["kind"].eq("mlp").any():
            told |= {"suggested": list(self.suggested()), "rule": RULE}
        return told | {
            "facts": self.facts.to_dict("records"),
            "left_out": dict(self.left_out),
            "effects": means.where(means.notna(), None).to_dict("records"),
        }
