from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from fishr_exp.reports.figures.diagnostics import PANELS, draw_diagnostics, series

RECORDS = [
    {
        "step": step,
        "diagnostics": {
            "variance_norm/a$": 0.1 * step,
            "variance_norm/b": 0.2,
            "variance_distance/a$/b": 10.0**-step,
            "variance_norm_all/a$": 3.0,
            "variance_distance_all/a$/b": 10.0**-step,
            "penalty_share": 0.0,
            "gradient_cosine": None if step == 1 else -0.5,
        },
    }
    for step in (1, 2, 3)
]


def test_series_by_panel_and_line():
    found = series([*RECORDS, {"step": 4}])
    assert list(found) == list(PANELS)
    assert found["variance_norm"]["b"] == [(1, 0.2), (2, 0.2), (3, 0.2)]
    assert list(found["variance_distance"]) == ["a$ – b"]
    assert found["gradient_cosine"][""] == [(2, -0.5), (3, -0.5)]


def test_a_panel_for_each_and_a_mark_where_the_penalty_switches_on(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    draw_diagnostics(RECORDS, "run", 2, tmp_path / "diagnostics")
    figures[0].draw_without_rendering()
    assert [axes.get_title() for axes in figures[0].axes] == list(PANELS.values())
    for axes in figures[0].axes:
        assert [2, 2] in [list(line.get_xdata()) for line in axes.lines]
    assert [axes.get_yscale() for axes in figures[0].axes] == ["linear", "log"] * 2 + ["linear"] * 2


def test_erm_has_two_panels(tmp_path):
    records = [
        {
            "step": r["step"],
            "diagnostics": {k: v for k, v in r["diagnostics"].items() if "var" in k},
        }
        for r in RECORDS
    ]
    first = draw_diagnostics(records, "run", 0, tmp_path / "a")
    second = draw_diagnostics(records, "run", 0, tmp_path / "b")
    assert [file.name for file in first] == ["a.pdf", "a.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_without_diagnostics_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no record"):
        draw_diagnostics([{"step": 1}], "run", 0, tmp_path / "a")
