"""One fact of one's own: asked before the edit, with the edit in force, and after it was taken back.

The fact is asked in its own words, in other wordings and through neighbours, which should stay as they were.
"""

import os
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from palimpsest.editors import edit
from palimpsest.evaluation.answers import ask
from palimpsest.network.apply import installed
from palimpsest.network.model import EditableModel, generate
from palimpsest.results import records
from palimpsest.results.prose import Markdown
from palimpsest.styles import OKABE_ITO
from palimpsest.types import EditRequest

MOMENTS = {"before": OKABE_ITO["black"], "edited": OKABE_ITO["vermilion"], "undone": OKABE_ITO["sky blue"]}
"""When the model is asked -> colour in the figure."""

KINDS = ("the fact", "another wording", "a neighbour")
"""How the fact is asked."""

WORDS = 8
"""Tokens of a continuation that are shown."""


def try_fact(
    model: EditableModel,
    fact: EditRequest,
    old: str,
    wordings: Sequence[str] = (),
    neighbours: Sequence[str] = (),
    editor: str = "memit",
) -> pd.DataFrame:
    """Ask before, during and after an edit of one fact; the model's weights are restored bit by bit.

    Args:
        model: the model; it is left as it was.
        fact: what to write.
        old: the object before the edit, whose probability is compared with that of the new one.
        wordings: other prompts about the same subject.
        neighbours: prompts about other subjects.
        editor: a name in `palimpsest.editors.EDITORS` of a method that needs no further inputs.

    Returns:
        A row for each moment and prompt: ``moment``, ``kind``, ``prompt``, probabilities ``new`` and ``old``
        of the two objects in percent, and ``says``, the beginning of a greedy continuation.

    Raises:
        RequestError: if an object gives no token.
        UnknownNameError, ProfileError: if the editor is unknown or has no settings for the model.
    """
    made, _ = edit(editor, model, [fact])
    asked = [(KINDS[0], fact.text)]
    asked += [(KINDS[1], prompt) for prompt in wordings] + [(KINDS[2], prompt) for prompt in neighbours]
    objects = (fact.target, old)
    rows = _asked(model, "before", asked, objects)
    with installed(model, made):
        rows += _asked(model, "edited", asked, objects)
    rows += _asked(model, "undone", asked, objects)
    return pd.DataFrame(rows)


def _asked(
    model: EditableModel, moment: str, asked: Sequence[tuple[str, str]], objects: tuple[str, str]
) -> list[dict[str, Any]]:
    pairs = [(prompt, word) for word in objects for _, prompt in asked]
    chance = (100 * ask(model, pairs).token_nll.sum(1).neg().exp()).tolist()
    return [
        {
            "moment": moment,
            "kind": kind,
            "prompt": prompt,
            "new": chance[place],
            "old": chance[place + len(asked)],
            "says": " ".join(generate(model, prompt, WORDS).removeprefix(prompt).split()),
        }
        for place, (kind, prompt) in enumerate(asked)
    ]


def tried_figure(rows: pd.DataFrame, new: str, old: str) -> Figure:
    """Probabilities of both objects at every prompt and moment.

    Args:
        rows: from `try_fact`.
        new: the new object, for the axis.
        old: the object before the edit, for the axis.
    """
    prompts = list(dict.fromkeys(rows["prompt"]))
    figure, axes = plt.subplots(2, 1, figsize=(6, 1.6 + 0.55 * len(prompts)), sharex=True)
    for ax, column, word in zip(axes, ("new", "old"), (new, old), strict=True):
        for shift, (moment, colour) in enumerate(MOMENTS.items()):
            part = rows[rows["moment"] == moment]
            places = [prompts.index(prompt) + 0.24 * (shift - 1) for prompt in part["prompt"]]
            ax.barh(places, part[column], 0.22, color=colour, label=moment)
        kinds = rows.drop_duplicates("prompt").set_index("prompt")["kind"]
        ax.set_yticks(range(len(prompts)), [kinds[prompt] for prompt in prompts])
        ax.set_title(f"probability of “{word}”", loc="left")
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
    axes[-1].set(xlabel="probability, %", xlim=(0, 100))
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure


def playground(
    model: EditableModel,
    fact: EditRequest,
    old: str,
    wordings: Sequence[str] = (),
    neighbours: Sequence[str] = (),
    editor: str = "memit",
) -> Any:
    """Fields to type a fact into, in Jupyter; a sentence that says so where nobody can type.

    Args:
        model: is asked and edited, and left as it was.
        fact: in the fields at first.
        old: object before the edit, in the fields at first.
        wordings: likewise, one a line.
        neighbours: likewise.
        editor: as for `try_fact`.
    """
    if any(os.environ.get(name) for name in (records.STAGING, records.RECORDS)):
        return Markdown("Opened in Jupyter Lab, this cell shows fields to type a fact of your own into.")
    import ipywidgets as widgets

    wide = widgets.Layout(width="100%")
    typed = {
        "prompt": widgets.Text(fact.prompt, description="prompt", layout=wide),
        "subject": widgets.Text(fact.subject, description="subject", layout=wide),
        "target": widgets.Text(fact.target, description="new object", layout=wide),
        "old": widgets.Text(old, description="old object", layout=wide),
        "wordings": widgets.Textarea("\n".join(wordings), description="wordings", layout=wide),
        "neighbours": widgets.Textarea("\n".join(neighbours), description="neighbours", layout=wide),
    }
    button, output = widgets.Button(description="Edit, ask, undo"), widgets.Output()

    def run(_: object) -> None:
        button.disabled = True
        try:
            with output:
                output.clear_output()
                _tried(model, {name: field.value for name, field in typed.items()}, editor)
        finally:
            button.disabled = False

    button.on_click(run)
    return widgets.VBox([*typed.values(), button, output])


def _tried(model: EditableModel, typed: dict[str, str], editor: str) -> None:
    """Try what was typed and show figure and table; what cannot be tried is said in one line."""
    from IPython.display import display

    from palimpsest.errors import PalimpsestError

    try:
        fact = EditRequest(typed["prompt"], typed["subject"], typed["target"])
        wordings, neighbours = (
            [line.strip() for line in typed[name].splitlines() if line.strip()]
            for name in ("wordings", "neighbours")
        )
        rows = try_fact(model, fact, typed["old"], wordings, neighbours, editor)
    except PalimpsestError as error:
        print(error)
        return
    figure = tried_figure(rows, fact.target, typed["old"])
    display(figure, rows[["moment", "prompt", "says"]])
    plt.close(figure)
