"""Settings of values and editors, and the file that holds them for each model.

``config/models/<name>.yaml`` lists, for one model, what each editor needs: the published settings for the
papers' models, and for the embedded one what a search on validation facts found. Every field is checked.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from palimpsest import paths
from palimpsest.errors import ProfileError, UnknownNameError


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or list(layers) != sorted({*layers}):
        raise ValueError(f"edited layers must be one or more, ascending and distinct, got {list(layers)}")
    return layers


Layers = Annotated[tuple[int, ...], AfterValidator(_ascending)]
"""Edited layers; values are optimised at the last one, so their order matters."""


@dataclass(frozen=True, config={"extra": "forbid"})
class TargetSettings:
    """How values are optimised. Defaults are MEMIT's for GPT2-XL.

    Attributes:
        steps: forward passes; the last one only evaluates, so there are ``steps − 1`` updates.
        lr: Adam's learning rate.
        clamp: ‖δ‖ is kept within this many times the norm of the unedited state.
        decay: weight of ‖δ‖/‖h₀‖² (norm over squared norm, as released), unit of h.
        kl: weight of the KL divergence from the unedited next-token distribution.
        stop_below: a request whose loss falls below this is done.
        reference: the unedited state h₀ that clamp and decay refer to and that δ is added to: the layer's
            output ``hidden`` (MEMIT, AlphaEdit) or the edited map's output ``value`` (ROME). Both act alike
            on the layers above, because the layer adds its MLP output to the stream.
        loss_layer: read the loss from this layer's output instead of the last one's; None for the last.
    """

    steps: int = Field(default=20, ge=1)
    lr: float = Field(default=0.5, gt=0)
    clamp: float = Field(default=0.75, gt=0)
    decay: float = Field(default=0.5, ge=0)
    kl: float = Field(default=0.0625, ge=0)
    stop_below: float = Field(default=0.05, ge=0)
    reference: Literal["hidden", "value"] = "hidden"
    loss_layer: int | None = None


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class PreservingTargets(TargetSettings):
    """Values optimised with a preservation loss beside the others: L_total = L_edit + β L_kp + decay.

        L_kp = Σ over protected texts of ‖P x‖²       P: projector on one direction of the edit

    x is the activation at a text's last token. The paper takes P on the input side of the edited map, and the
    vector that its optimisation moves is on the output side; both readings are here. Settings without
    protection are `TargetSettings` and stay as they are, in results and in keys of caches.

    Attributes:
        protected: texts, for example names of entities that nothing is edited about.
        beta: β.
        direction: ``delta``, P on δ, and ``value``, P on h₀ + δ: x is the state that δ moves, and L_kp pulls
            at δ. ``key``, P on the fact's key, with x a key, as Eq. 1 has it: L_kp is then the same at every
            δ, so that it cannot pull at it and only adds to the loss that is compared with ``stop_below``.

    Source: Diagnosing Hidden Instabilities, Eq. 1 and 2.
    """

    protected: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    beta: float = Field(default=0.0, ge=0)
    direction: Literal["delta", "value", "key"] = "delta"


@dataclass(frozen=True, config={"extra": "forbid"})
class ContextSettings:
    """Sampled context prefixes.

    Attributes:
        count: sampled prefixes beside the empty one.
        length: tokens of each.
        seed: of their generator.
    """

    count: int = Field(default=5, ge=0)
    length: int = Field(default=10, ge=2)
    seed: int = 0


def models_dir() -> Path:
    """Folder of the settings files."""
    return paths.root() / "config" / "models"


def known_models() -> dict[str, Path]:
    """Every name a model is known by (short name and hub ids) -> its settings file."""
    names: dict[str, Path] = {}
    for path in sorted(models_dir().glob("*.yaml")):
        names[path.stem] = path
        names |= dict.fromkeys(_read(path).get("also", []), path)
    return names


def editor_settings(model: str, editor: str) -> dict[str, Any]:
    """Settings of one editor for one model, as keyword arguments of the editor.

    Raises:
        UnknownNameError: if there is no file for the model.
        ProfileError: if the file has no section for the editor or is not YAML.
    """
    known = known_models()
    if model not in known:
        raise UnknownNameError("model with settings (else pass an editor object)", model, list(known))
    content = _read(known[model])
    if editor not in content.get("editors", {}):
        raise ProfileError(
            f"{known[model].name} has no settings for editor {editor!r}; it has "
            f"{', '.join(content.get('editors', {}))}. Add a section or pass an editor object"
        )
    return dict(content["editors"][editor])


def alphaset_settings(model: str) -> dict[str, dict[str, Any]]:
    """What was chosen for sequences of one model on validation AlphaSets: name -> overrides; often none.

    Raises:
        UnknownNameError: if there is no file for the model.
        ProfileError: if the file is not YAML.
    """
    known = known_models()
    if model not in known:
        raise UnknownNameError("model with settings (else pass an editor object)", model, list(known))
    return dict(_read(known[model]).get("alphaset", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{path.name} holds no mapping; it needs a section 'editors'")
    return content
