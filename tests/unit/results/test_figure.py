from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from fishr_exp.results import figure as module
from fishr_exp.results.figure import draw, varies_gamma
from fishr_exp.results.runs import read_runs
from fishr_exp.results.table import build_tables


@pytest.fixture
def drawn(factory, tmp_path, monkeypatch):
    """Draw the only table and return its figure; nothing is written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))

    def run() -> Figure:
        (table,) = build_tables(read_runs(factory.root).done)
        draw(table, tmp_path / "figure")
        figures[0].draw_without_rendering()
        return figures[0]

    return run


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_writes_pdf_and_png_the_same_each_time(factory, tmp_path):
    factory.sweep([0.0, 1.0, 100.0])
    (table,) = build_tables(read_runs(factory.root).done)
    first = draw(table, tmp_path / "a.b")
    second = draw(table, tmp_path / "c")
    assert [path.name for path in first] == ["a.b.pdf", "a.b.png"]
    assert first[0].read_bytes().startswith(b"%PDF")
    assert first[1].read_bytes().startswith(b"\x89PNG")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_curve_over_gamma(factory, drawn):
    factory.sweep([0.0, 1.0, 100.0])
    figure = drawn()
    (axes,) = figure.axes
    assert legend(figure) == ["fishr, test", "fishr, validation", "ERM, test"]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "accuracy (%)"
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["0", "1", "100"]
    test, validation = axes.containers
    x, y = test.lines[0].get_data()
    assert x[0] < x[1] == 1.0  # 0 has a place left of the first power
    assert x[2] == 100.0
    (table,) = build_tables(read_runs(factory.root).done)
    means = [row.test["minus90"].mean for row in table.rows[1:]]
    assert list(y) == pytest.approx(means)
    error = table.rows[1].test["minus90"].standard_error
    low, high = (cap.get_ydata()[0] for cap in test.lines[1])
    assert (high - low) / 2 == pytest.approx(error)
    assert validation.lines[0].get_linewidth() < test.lines[0].get_linewidth()
    assert "3 seeds" in figure.get_suptitle()
    assert "colored_digits" in figure.get_suptitle()


def test_without_gamma_zero_the_axis_is_unbroken(factory, drawn):
    factory.sweep([1.0, 100.0])
    (axes,) = drawn().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "100"]
    assert [line for line in axes.lines if line.get_marker() == "$//$"] == []


def test_everything_lies_inside_and_the_legend_hides_nothing(factory, drawn):
    factory.sweep([0.0, 1.0, 100.0])
    factory.sweep([0.0, 1.0, 100.0], batch_size=128)
    figure = drawn()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    box = figure.legends[0].get_window_extent(renderer)
    assert not box.overlaps(axes.get_tightbbox(renderer))
    for part in (box, axes.get_tightbbox(renderer)):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= figure.bbox.x1
    assert len(legend(figure)) == 6  # two settings: test, validation and ERM of each


def test_a_panel_for_each_test_domain(factory, drawn):
    for seed in (0, 1):
        for gamma in (1.0, 10.0):
            factory.done("fishr", gamma, seed, {"minus90": 0.5, "gray": 0.7})
    figure = drawn()
    assert [axes.get_title() for axes in figure.axes] == [
        "test domain minus90",
        "test domain gray",
    ]
    assert legend(figure) == ["fishr, test", "fishr, validation"]


def test_without_variation_of_gamma_one_point_a_row(factory, drawn):
    factory.done("erm", None, 0, 0.2, validation=None)
    factory.done("fishr", 1.0, 0, 0.6)
    (table,) = build_tables(read_runs(factory.root).done)
    assert not varies_gamma(table)
    figure = drawn()
    (axes,) = figure.axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["ERM", "fishr, γ=1"]
    assert legend(figure) == ["validation", "test"]
    assert axes.get_xlabel() == "accuracy (%)"
    assert "1 seed" in figure.get_suptitle()
    assert "error" not in figure.get_suptitle()


def test_dollars_in_names_are_no_mathematics(factory, drawn):
    factory.done("erm", None, 0, {r"a$\frac$": 0.2})
    assert r"\$" in drawn().get_suptitle()  # drawing it raised nothing


def test_many_gammas_do_not_run_into_each_other(factory, drawn):
    for power in range(16):
        factory.done("fishr", 2.0**power, 0, 0.5)
    (axes,) = drawn().axes
    assert len(axes.get_xticks()) <= 8


def test_matplotlib_is_imported_only_to_draw():
    code = f"import sys, {module.__name__}; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
