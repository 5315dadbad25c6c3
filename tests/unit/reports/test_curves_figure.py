"""Accuracies over the steps."""

from __future__ import annotations

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from fishr_exp.reports.figures.canvas import MOST_PIXELS, create_panels, save, styled
from fishr_exp.reports.figures.curves import (
    MOST_ROWS,
    _Line,
    _styles,
    draw_curves,
    of_test_domain,
    of_validation,
    over_steps,
)
from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.reading import read_runs
from fishr_exp.runs.run_folder import RECORDS


def test_there_are_styles_for_any_number_of_methods():
    lines = [_Line(str(n), (str(n),), None, False, {}, {}) for n in range(100)]
    assert len(_styles(lines)) == 100


def tables(factory):
    return build_tables(read_runs(factory.root).done)


def record(step, test, validation):
    return {
        "step": step,
        "accuracy": {"minus90": {"train": None, "validation": test}},
        "validation_accuracy": validation,
    }


@pytest.fixture
def two_seeds(factory):
    """ERM, of which one seed stopped a step early, and Fishr."""
    for method, gamma in (("erm", None), ("fishr", 1.0)):
        for seed, values in enumerate(([0.1, 0.2, 0.3], [0.3, 0.4])):
            folder = factory.done(method, gamma, seed, 0.5)
            for step, value in enumerate(values, start=11):
                folder.append(record(step, value, 1 - value))
            folder.close()
    return tables(factory)


def test_a_line_is_the_mean_over_seeds_where_all_have_a_record(two_seeds):
    row = two_seeds[0].rows[0]
    test = over_steps(row, of_test_domain("minus90"))
    assert list(test) == [11, 12]  # at step 10 nothing was evaluated, at 13 one seed alone
    assert [e.mean for e in test.values()] == pytest.approx([20, 30])
    assert [e.standard_error for e in test.values()] == pytest.approx([10, 10])
    assert [e.mean for e in over_steps(row, of_validation()).values()] == pytest.approx([80, 70])


def drawn(tables, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    files = draw_curves(tables, tmp_path / "curves")
    return files, figures[0] if figures else None


def test_a_panel_for_the_test_domain_and_one_for_the_others(two_seeds, tmp_path, monkeypatch):
    files, figure = drawn(two_seeds, tmp_path, monkeypatch)
    figure.draw_without_rendering()
    assert [file.name for file in files] == ["curves.pdf", "curves.png"]
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("test domain minus90", "training domains")
    assert figure.get_suptitle().startswith("colored_digits; accuracy on validation parts; 2 seeds")
    assert left.get_ylim() == right.get_ylim()
    for axes, means in ((left, [20, 30]), (right, [80, 70])):
        assert len(axes.lines) == 2  # ERM and Fishr
        assert list(axes.lines[0].get_ydata()) == pytest.approx(means)
    assert [text.get_text() for text in figure.legends[0].texts] == ["ERM", "Fishr, γ=1"]


def with_curves(factory, method, gamma, seed=0, **settings):
    folder = factory.done(method, gamma, seed, 0.5, **settings)
    for step in (11, 12):
        folder.append(record(step, 0.5, 0.6))
    folder.close()


def colors(figure):
    from matplotlib.colors import to_rgb

    handles, texts = figure.legends[0].legend_handles, figure.legends[0].texts
    return {
        text.get_text(): to_rgb(handle.get_color())
        for text, handle in zip(texts, handles, strict=True)
    }


def lightness(color):
    return sum(weight * part for weight, part in zip((0.2, 0.7, 0.1), color, strict=True))


def test_the_colors_of_a_method_are_ordered_like_its_gammas(factory, tmp_path, monkeypatch):
    gammas = [0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5]
    for gamma in gammas:
        with_curves(factory, "fishr", gamma)
    for gamma in gammas[1:4]:
        with_curves(factory, "vrex", gamma)
    with_curves(factory, "irm", 5.0)
    found = colors(drawn(tables(factory), tmp_path, monkeypatch)[1])
    assert found.pop("ERM") == (0, 0, 0)
    assert len({*found.values()}) == len(found) == 10  # no color twice
    for method in ("Fishr", "V-REx"):
        own = [lightness(color) for label, color in found.items() if label.startswith(method)]
        assert own == sorted(own, reverse=True)  # the darker, the larger


def test_the_legend_takes_a_small_part_of_the_figure(factory, tmp_path, monkeypatch):
    for gamma in [0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5]:
        with_curves(factory, "fishr", gamma)
    _, figure = drawn(tables(factory), tmp_path, monkeypatch)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert box.height < 0.2 * figure.bbox.height
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    for axes in figure.axes:
        assert axes.get_window_extent().height > 0.5 * figure.bbox.height


def test_several_test_domains_and_datasets_are_named(factory, tmp_path, monkeypatch):
    with_curves(factory, "erm", None)
    with_curves(factory, "erm", None, labels={"dataset": "pacs"})
    _, figure = drawn(tables(factory), tmp_path, monkeypatch)
    assert [axes.get_title() for axes in figure.axes] == [
        "colored_digits: test domain minus90", "colored_digits: training domains without minus90",
        "pacs: test domain minus90", "pacs: training domains without minus90",
    ]  # fmt: skip


def test_two_test_domains_share_the_panel_of_the_training_domains(factory, tmp_path, monkeypatch):
    folder = factory.done("erm", None, 0, {"minus90": 0.5, "gray": 0.5})
    for step in (11, 12):
        both = {name: {"train": None, "validation": step / 20} for name in ("minus90", "gray")}
        folder.append({"step": step, "accuracy": both, "validation_accuracy": 0.6})
    folder.close()
    _, figure = drawn(tables(factory), tmp_path, monkeypatch)
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "test domain minus90", "test domain gray", "training domains",
    ]  # fmt: skip
    assert [axes.get_xlabel() for axes in shown] == ["", "step", "step"]  # the lowest ones
    assert all(tick == int(tick) for tick in shown[1].get_xticks())


def test_names_are_written_as_asked(two_seeds, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    draw_curves(two_seeds, tmp_path / "curves", lambda text: text.replace("Fishr", "Ours"))
    assert [text.get_text() for text in figures[0].legends[0].texts] == ["ERM", "Ours, γ=1"]


def test_the_same_runs_give_the_same_file(two_seeds, tmp_path):
    first = draw_curves(two_seeds, tmp_path / "a")
    second = draw_curves(two_seeds, tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_runs_that_were_evaluated_once_have_no_curves(factory, tmp_path):
    factory.sweep([1.0])
    assert draw_curves(tables(factory), tmp_path / "curves") == []
    assert not list(tmp_path.glob("curves*"))


def test_too_many_rows_are_left_out(factory, tmp_path):
    for number in range(MOST_ROWS + 1):
        folder = factory.done("fishr", float(number + 1), 0, 0.5)
        for step in (11, 12):
            folder.append(record(step, 0.5, 0.5))
        folder.close()
    assert draw_curves(tables(factory), tmp_path / "curves") == []
    assert len(draw_curves(tables(factory), tmp_path / "curves", everything=True)) == 2


def test_a_figure_of_any_length_is_saved(tmp_path):
    with styled():
        figure, _ = create_panels(1, 1, height=120)
        files = save(figure, tmp_path / "long")
    assert plt.imread(files[1]).shape[0] in range(MOST_PIXELS - 200, MOST_PIXELS + 1)


def test_records_that_cannot_be_read_are_named(two_seeds, tmp_path):
    path = two_seeds[0].rows[0].runs[0].path / RECORDS
    path.write_text("no record\n" + path.read_text())
    with pytest.raises(ValueError, match=r"records\.jsonl is damaged: line 1"):
        draw_curves(two_seeds, tmp_path / "curves")
