from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from fishr_exp.reports.figures import gamma as module
from fishr_exp.reports.figures.canvas import wrap_title
from fishr_exp.reports.figures.gamma import draw, is_drawn, varies_gamma
from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.reading import read_runs


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


SELECTED = ["selected by validation", "selected by the oracle (sees test)"]


def line(figure: Figure, label: str):
    (found,) = [of for of in figure.axes[0].lines if of.get_label() == label]
    return found


def test_curve_over_gamma(factory, drawn):
    factory.sweep([0.0, 1.0, 100.0])
    figure = drawn()
    (axes,) = figure.axes
    assert legend(figure) == ["Fishr, test", "Fishr, validation", "ERM, test", *SELECTED]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "accuracy (%)"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "100"]
    test, validation = (line(figure, f"Fishr, {part}") for part in ("test", "validation"))
    (table,) = build_tables(read_runs(factory.root).done)
    rows = table.rows[2:]
    assert list(test.get_xdata()) == [1.0, 100.0]
    assert list(test.get_ydata()) == pytest.approx([row.test["minus90"].mean for row in rows])
    band = axes.collections[0].get_paths()[0].vertices
    at_100 = band[band[:, 0] == 100.0, 1]
    error = rows[1].test["minus90"].standard_error
    assert (at_100.max() - at_100.min()) / 2 == pytest.approx(error)
    assert validation.get_linewidth() < test.get_linewidth()
    erm = table.rows[0].test["minus90"].mean
    assert list(line(figure, "ERM, test").get_ydata()) == pytest.approx([erm, erm])
    assert "3 seeds" in figure.get_suptitle()
    assert "colored_digits" in figure.get_suptitle()


def test_zero_has_a_place_of_its_own_left_of_a_break(factory, drawn):
    factory.sweep([0.0, 1.0, 100.0])
    figure = drawn()
    (axes,) = figure.axes
    zero, low = sorted(axes.get_xticks())[:2]
    apart = [container.lines[0].get_data() for container in axes.containers]
    assert all(x[0] == zero < low == 1.0 for x, _ in apart)
    assert [of.get_marker() for of in axes.lines].count("$//$") == 1


@pytest.mark.parametrize("own_zero", [True, False])
def test_erm_is_the_point_at_zero_and_the_line(factory, drawn, own_zero):
    for seed, erm in enumerate([0.2, 0.3]):
        if own_zero:
            factory.done("fishr", 0.0, seed, erm)
        else:
            factory.done("erm", None, seed, erm)
        for gamma in (1.0, 100.0):
            factory.done("fishr", gamma, seed, 0.5)
    figure = drawn()
    label = "ERM (γ = 0), test" if own_zero else "ERM, test"
    assert legend(figure)[:3] == ["Fishr, test", "Fishr, validation", label]
    assert list(line(figure, label).get_ydata()) == pytest.approx([25.0, 25.0])
    tested = figure.axes[0].containers[0].lines[0]
    assert list(tested.get_ydata()) == pytest.approx([25.0])


def test_rings_lie_where_each_selection_picks(factory, drawn):
    for gamma, test, validation in [(0.0, 0.2, 0.9), (1.0, 0.4, 0.95), (10.0, 0.6, 0.5)]:
        factory.done("fishr", gamma, 0, test, validation)
    figure = drawn()
    by_validation, by_oracle = (line(figure, label) for label in SELECTED)
    assert by_validation.get_xydata().ravel().tolist() == pytest.approx([1.0, 40.0])
    assert by_oracle.get_xydata().ravel().tolist() == pytest.approx([10.0, 60.0])


def test_without_erm_the_axis_is_unbroken(factory, drawn):
    for gamma in (1.0, 100.0):
        factory.done("fishr", gamma, 0, 0.5)
    (axes,) = drawn().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "100"]
    assert [of for of in axes.lines if of.get_marker() == "$//$"] == []


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
    # two settings: test, validation and ERM of each
    assert len(legend(figure)) == 6 + len(SELECTED)


def test_a_panel_for_each_test_domain(factory, drawn):
    for seed in (0, 1):
        for gamma in (1.0, 10.0):
            factory.done("fishr", gamma, seed, {"minus90": 0.5, "gray": 0.7})
    figure = drawn()
    assert [axes.get_title() for axes in figure.axes] == [
        "test domain minus90",
        "test domain gray",
    ]
    assert legend(figure) == ["Fishr, test", "Fishr, validation", *SELECTED]
    # the oracle looks at the first test domain
    assert [
        len([of for of in axes.lines if of.get_label() in SELECTED]) for axes in figure.axes
    ] == [
        2,
        0,
    ]


def test_without_variation_of_gamma_one_point_a_row(factory, drawn):
    factory.done("erm", None, 0, 0.2, validation=None)
    factory.done("fishr", 1.0, 0, 0.6)
    (table,) = build_tables(read_runs(factory.root).done)
    assert not varies_gamma(table)
    figure = drawn()
    (axes,) = figure.axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["ERM", "Fishr, γ=1"]
    assert legend(figure) == ["validation", "test"]
    assert axes.get_xlabel() == "accuracy (%)"
    assert "1 seed" in figure.get_suptitle()
    assert "error" not in figure.get_suptitle()


def test_panels_of_points_have_one_scale(factory, drawn):
    factory.done("erm", None, 0, {"minus90": 0.1, "gray": 0.7})
    first, second = drawn().axes
    assert first.get_xlim() == second.get_xlim()


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


def test_names_are_written_as_asked(factory, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    trainer = {"_target_": "mylab.A$_1$", "gamma": 1.0}
    factory.done("mine", 1.0, 0, 0.5, trainer=trainer)
    factory.done("mine", 2.0, 0, 0.5, trainer={**trainer, "gamma": 2.0})
    (table,) = build_tables(read_runs(factory.root).done)
    draw(table, tmp_path / "figure", lambda text: text.replace("A$_1$", "B$2").replace("s9", "s8"))
    figures[0].draw_without_rendering()
    assert legend(figures[0])[:2] == [r"B\$2, test", r"B\$2, validation"]


def test_of_equal_baselines_one_is_drawn(factory, drawn):
    for method in ("fishr", "vrex"):
        for gamma in (0.0, 1.0):
            factory.done(method, gamma, 0, 0.5 if gamma else 0.2)
    assert [of for of in legend(drawn()) if of.startswith("ERM")] == ["ERM (γ = 0), test"]


def test_unequal_baselines_are_named_by_their_method(factory, drawn):
    for method, test in (("fishr", 0.2), ("vrex", 0.3)):
        for gamma in (0.0, 1.0):
            factory.done(method, gamma, 0, 0.5 if gamma else test)
    found = [of for of in legend(drawn()) if of.startswith("ERM")]
    assert found == ["ERM (Fishr), γ=0, test", "ERM (V-REx), γ=0, test"]


def test_settings_are_named_by_their_last_word_and_not_broken(factory, drawn):
    for scope in ("classifier_and_a_long_name", "all"):
        trainer = {"_target_": "mylab.Mine", "scope": scope}
        factory.done("mine", None, 0, 0.5, trainer=trainer)
    labels = [text.get_text() for text in drawn().axes[0].get_yticklabels()]
    assert labels == ["Mine, scope=all", "Mine,\nscope=classifier_and_a_long_name"]


def test_of_many_methods_without_gamma_the_line_is_erm_alone(factory, drawn):
    factory.sweep([1.0, 100.0], seeds=1)
    for number in range(4):
        factory.done(f"method{number}", None, 0, 0.3 + number / 10)
    assert "ERM, test" in legend(drawn())
    assert not any("method" in label.lower() for label in legend(drawn()))


def test_every_curve_has_its_own_color_and_marker(factory, drawn):
    for number in range(9):
        for gamma in (1.0, 10.0):
            factory.done(f"method{number}", gamma, 0, 0.3 + number / 100)
    (axes,) = drawn().axes
    styles = [
        (of.get_color(), of.get_marker())
        for of in axes.lines
        if str(of.get_label()).endswith(", test")
    ]
    assert len(styles) == len(set(styles)) == 9


def test_points_of_many_methods_have_a_line_for_erm(factory, drawn):
    for method, accuracy in (("erm", 0.2), ("mldg", 0.3), ("rsc", 0.4)):
        factory.done(method, None, 0, accuracy)
    figure = drawn()
    level = line(figure, "ERM, test")
    assert "ERM, test" in legend(figure)
    assert list(level.get_xdata()) == [pytest.approx(20)] * 2


@pytest.mark.parametrize(
    ("gammas", "batch_sizes", "limit"),
    [((1.0, 2.0), 13, "12 curves"), pytest.param((1.0,), 101, "100 rows", marks=pytest.mark.slow)],
)
def test_a_figure_that_nobody_could_read_is_left_out(factory, capsys, gammas, batch_sizes, limit):
    from fishr_exp.cli.table import main

    for size in range(batch_sizes):
        for gamma in gammas:
            factory.done("fishr", gamma, 0, 0.5, batch_size=size)
        if size == batch_sizes - 2:
            (table,) = build_tables(read_runs(factory.root).done)
            assert is_drawn(table)
    (table,) = build_tables(read_runs(factory.root).done)
    assert not is_drawn(table)
    assert main([str(factory.root)]) == 0
    out = capsys.readouterr().out
    assert f"No figure of {table.title}: it has more than {limit}" in out
    assert "figure.pdf" not in out
    assert main([str(factory.root), "--where", "batch_size=0,1"]) == 0
    assert "figure.pdf" in capsys.readouterr().out
    other = factory.root / "table" / "figure-of-mine.png"
    other.touch()
    assert main([str(factory.root)]) == 0  # the figure would be of other runs than the table
    out = capsys.readouterr().out
    for suffix in ("pdf", "png"):
        file = factory.root / "table" / f"figure.{suffix}"
        assert f"Removed {file}: " in out
        assert not file.exists()
    assert other.exists()
    assert main([str(factory.root), "--all-figures"]) == 0
    out = capsys.readouterr().out
    assert "figure.pdf" in out
    assert "No figure" not in out
    assert "Removed" not in out


def test_a_long_title_is_on_several_lines(factory, drawn):
    factory.sweep(
        [0.0, 1.0], labels={"dataset": "a dataset with a name", "model": "a small net " * 4}
    )
    figure = drawn()
    assert figure.get_suptitle().count("\n") >= 2
    width = figure._suptitle.get_window_extent().width
    assert width <= figure.bbox.width


def test_titles_break_at_their_semicolons():
    title = "colored_mnist_domainbed; test domain minus90; model mlp"
    assert wrap_title(title, 60) == title
    assert wrap_title(title, 54) == "colored_mnist_domainbed; test domain minus90;\nmodel mlp"
    assert wrap_title("one; two; three", 4) == "one;\ntwo;\nthre\ne"
    assert wrap_title("no semicolon here", 12) == "no semicolon\nhere"


def averaged(factory, gamma, test):
    averaging = {"_target_": "fishr_exp.training.averaging.sma.Sma"}
    factory.done("fishr", gamma, 0, test, averaging=averaging)


def test_curves_are_in_the_order_of_their_settings_each_with_its_line(factory, drawn):
    for gamma, plain, mean in ((0.0, 0.2, 0.3), (1.0, 0.4, 0.5)):
        averaged(factory, gamma, mean)
        factory.done("fishr", gamma, 0, plain)
    figure = drawn()
    assert legend(figure)[::2][:2] == ["Fishr, test", "Fishr, averaging=SMA, test"]
    for of, level in (("Fishr", 20.0), ("Fishr, averaging=SMA", 30.0)):
        found = line(figure, of.replace("Fishr", "ERM") + ", γ=0, test")
        assert list(found.get_ydata()) == pytest.approx([level] * 2)
        assert found.get_color() == line(figure, f"{of}, test").get_color()


def test_a_method_with_one_gamma_is_a_line_beside_erm(factory, drawn):
    factory.sweep([0.0, 1.0, 100.0], seeds=1)
    factory.done("coral", 1.0, 0, 0.6)
    factory.done("mixup", None, 0, 0.7)
    figure = drawn()
    assert list(line(figure, "Coral, γ=1, test").get_ydata()) == pytest.approx([60.0] * 2)
    assert "Mixup, test" in legend(figure)
    assert sum(of.startswith("ERM") for of in legend(figure)) == 1
