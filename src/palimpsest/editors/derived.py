"""Settings for a model without a settings file, derived from the published ones; each with its reason.

Nothing is searched. Choices that are shares, such as layers as a share of depth and the clamp in units of the
state, are those published for the nearest model. Weights that have the unit of keys are those of the embedded
model, whose keys were measured (`MEASURED`), multiplied by the ratio of the energies of keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from palimpsest.editors.settings import editor_settings, known_models, models_dir, shapes
from palimpsest.errors import ProfileError
from palimpsest.memory.keys import subject_keys
from palimpsest.memory.moments import key_statistics
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest


@dataclass(frozen=True)
class Shape:
    """What makes a model near to another.

    Attributes:
        depth: number of decoder layers.
        width: d_v.
        gated: whether the MLP multiplies by a gate (LLaMA) or not (GPT-2).
        family: model type of its transformers configuration.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: int
    width: int
    gated: bool
    family: str

    def unlike(self, other: "Shape") -> tuple[bool, bool, float]:
        """How far another shape is: by kind of MLP, then by family, then by size, 12·depth·width²."""
        sizes = [log(12 * one.depth * one.width**2) for one in (self, other)]
        return self.gated != other.gated, self.family != other.family, abs(sizes[0] - sizes[1])


REFERENCE = "smollm2-135m"


@dataclass(frozen=True)
class Energy:
    """Sizes of keys, averaged over layers.

    Attributes:
        subject: mean squared length of keys of subjects, those of `PROBES`.
        text: mean squared length of keys of text, tr C₀.
        direction: tr C₀ / d_k.
    """

    subject: float
    text: float
    direction: float


MEASURED = Energy(subject=60.49, text=25.57, direction=0.016647)
"""Of the embedded model in its layers 3 to 5 and 60,000 tokens, as its settings say; from `energy`."""

PROBES = tuple(
    EditRequest(prompt, subject, "it")
    for prompt, subject in (
        ("{} is in the city of", "The Eiffel Tower"),
        ("The mother tongue of {} is", "Danielle Darrieux"),
        ("{} works in the field of", "Marie Curie"),
        ("The capital of {} is", "France"),
        ("{} was developed by", "Windows 95"),
        ("{} plays the sport of", "Michael Jordan"),
        ("The headquarters of {} are in", "Volkswagen"),
        ("{} is written in", "Le Figaro"),
    )
)
"""Subjects whose keys are measured; nothing is written about them."""


@dataclass(frozen=True)
class Derived:
    """Settings of an editor for a model without a file.

    Attributes:
        editor: name of the method.
        model: name of the model.
        settings: keyword arguments of the editor.
        reasons: one line for each derived setting: its value and why.
    """

    editor: str
    model: str
    settings: dict[str, Any]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            f"{self.model} has no settings in {models_dir()}; those of {self.editor} are derived and were "
            "not searched:"
        )
        return "\n  ".join([head, *self.reasons])


def has_file(model: str) -> bool:
    """Whether a model has a settings file."""
    return model in known_models()


def shape_of(model: EditableModel) -> Shape:
    """Shape of a loaded model."""
    names = [name for name, _ in model.layer(0).named_modules()]
    gated = any("gate" in name for name in names)
    return Shape(model.n_layers, read_weight(model, 0).shape[0], gated, str(model.net.config.model_type))


def by_nearness(shape: Shape) -> dict[str, Shape]:
    """Models whose settings files tell their shape, by short name; those nearest to a shape first.

    Raises:
        ProfileError: if a file is not YAML, or a shape in it lacks a value or has one of another kind.
    """
    known = {}
    for name, row in shapes().items():
        try:
            known[name] = TypeAdapter(Shape).validate_python(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise ProfileError(
                f"{name}.yaml, section shape: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from error
    return dict(sorted(known.items(), key=lambda item: shape.unlike(item[1])))


def layers_of(published: Sequence[int], depth: int, own: int) -> tuple[int, ...]:
    """Consecutive layers of a model at the same share of its depth as the published ones.

    Example: layers 4 to 8 of 32 are layers 3 to 6 of 24 and layer 1 of 4.
    """
    first, last = (min(int(layer * own / depth + 0.5), own - 1) for layer in (published[0], published[-1]))
    return tuple(range(first, last + 1))


def energy(model: EditableModel, layers: Sequence[int], tokens: int) -> Energy:
    """Sizes of a model's keys in some layers.

    Args:
        model: the unedited model.
        layers: averaged over.
        tokens: from which C₀ is estimated; it is cached, and an edit needs it anyway.
    """
    moments = key_statistics(model, list(layers), tokens)
    subject = [subject_keys(model, PROBES, layer, ("",)).square().sum(0).mean() for layer in layers]
    text = [moments[layer].value.trace() for layer in layers]
    wide = read_weight(model, layers[0]).shape[1]
    whole = float(sum(map(float, text))) / len(layers)
    return Energy(sum(map(float, subject)) / len(layers), whole, whole / wide)


SCALED = {
    "preserve_weight": ("key energy of subjects over that of text", lambda e: e.subject / e.text),
    "ridge": ("key energy of subjects", lambda e: e.subject),
    "threshold": ("mean eigenvalue of C0", lambda e: e.direction),
}
"""Setting that has the unit of keys -> what it grows with."""


def derived_settings(model: EditableModel, editor: str, own: Energy | None = None) -> Derived:
    """Derive the settings of an editor for a model without a settings file.

    Args:
        model: the unedited model.
        editor: a key of `palimpsest.editors.EDITORS`.
        own: sizes of its keys, where they are known already; by default they are measured where they matter.

    Raises:
        ProfileError: if no published model has settings of that editor.
    """
    shape = shape_of(model)
    source, depth, base = _base(shape, editor)
    found, reasons = dict(base), []
    if "layers" in base:
        layers = layers_of(base["layers"], depth, shape.depth)
        found["layers"] = layers[-1:] if len(base["layers"]) == 1 else layers
        reasons.append(
            f"layers {list(found['layers'])} of {shape.depth}: at the share of depth of layers "
            f"{list(base['layers'])} of {depth} in {source}"
        )
    reference = editor_settings(REFERENCE, editor)
    scaled = [name for name in SCALED if name in reference and reference[name] and name in base]
    if base.get("rule", "absolute") != "absolute":
        scaled = [name for name in scaled if name != "threshold"]
    if scaled:
        own = own or energy(model, found["layers"], int(base["statistics_tokens"]))
    for name in scaled if own is not None else []:
        about, of = SCALED[name]
        ratio = of(own) / of(MEASURED)
        found[name] = float(f"{reference[name] * ratio:.3g}")
        reasons.append(
            f"{name} {found[name]:g}: {reference[name]:g} of {REFERENCE}, times {ratio:.3g}, the ratio of "
            f"the {about}"
        )
    for part in ("perturbation", "smoothing"):
        if part in found:
            found[part] = None
            reasons.append(f"{part} off: its threshold has to be chosen for a model, and nothing tells it")
    reasons += [
        f"{name} {_shown(found[name])}: as for {source}" for name in base if found[name] == base[name]
    ]
    return Derived(editor, model.name, found, tuple(reasons))


def _base(shape: Shape, editor: str) -> tuple[str, int, dict[str, Any]]:
    """The nearest model that has settings of an editor, its depth, and these settings.

    Published ones come first; the embedded model serves where none of them has any.
    """
    known = by_nearness(shape)
    for name in [*(name for name in known if name != REFERENCE), REFERENCE]:
        try:
            settings = editor_settings(name, editor)
        except ProfileError:
            continue
        if name not in known:
            raise ProfileError(f"{name}.yaml has no section shape; give it depth, width, gated and family")
        return name, known[name].depth, settings
    raise ProfileError(f"no model has settings of {editor!r}, so none can be derived; pass an editor object")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={one}" for name, one in value.items())
    return str(value)
