"""Figures of causal traces can be read: every axis has a name and a unit, and what is drawn is the frame."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from palimpsest.errors import DataError
from palimpsest.results.effect_maps import COLOURS, effect_lines, effect_map
from palimpsest.results.figures import use_style

ROLES = {"subject_last": "last subject token", "last": "last token", "absent": "not in the frame"}


@pytest.fixture
def frame() -> pd.DataFrame:
    use_style()
    rows = [
        {"kind": kind, "role": role, "layer": layer, "mean": 0.01 * layer + 0.1 * place}
        for kind in ("state", "mlp")
        for place, role in enumerate(("last", "subject_last"))
        for layer in (0, 3, 6)
    ]
    made = pd.DataFrame(rows)
    return made.assign(low=made["mean"] - 0.02, high=made["mean"] + 0.02)


def test_a_map_shows_points_of_probability_by_role_and_layer(frame: pd.DataFrame) -> None:
    figure = effect_map(frame, ROLES, [3, 4])
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert len(panels) == 2
    meshes = [part for part in panels[1].collections if isinstance(part, QuadMesh)]
    assert np.allclose(meshes[0].get_array().reshape(2, 3), [[10, 13, 16], [0, 3, 6]])
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["last subject token", "last token"]
    assert panels[-1].get_xlabel().startswith("layer")
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert all("points" in ax.get_ylabel() for ax in bars)
    plt.close(figure)


def test_lines_have_the_colour_of_their_kind_and_both_sets_of_layers(frame: pd.DataFrame) -> None:
    roles = {"subject_last": "last subject token"}
    figure = effect_lines(frame, roles, [3, 4, 5], [2, 3])
    (ax,) = figure.axes
    drawn = {line.get_label(): to_hex(line.get_color()) for line in ax.lines if len(line.get_xdata()) == 3}
    assert set(drawn.values()) == {COLOURS["state"].lower(), COLOURS["mlp"].lower()}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["layers in the settings", "suggested layers"]
    assert "points" in ax.get_ylabel()
    plt.close(figure)


def test_a_point_given_twice_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="is given twice"):
        effect_map(pd.concat([frame, frame]), ROLES)
    with pytest.raises(DataError, match="lacks high"):
        effect_lines(frame.drop(columns="high"), ROLES)
