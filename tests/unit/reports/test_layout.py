"""Rows and columns that are chosen, their names, and the best numbers in bold."""

from __future__ import annotations

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.sheets.layout import Layout, lay_out
from fishr_exp.reports.sheets.sheet import Sheet, to_markdown, to_text

SHEET = Sheet(
    title="pacs; test domains photo, sketch",
    headers=["method", "gamma", "seeds", "photo (test)", "sketch (test)", "Δ ERM"],
    rows=[
        ["ERM", "–", "3", "60.0 ± 1.0", "50.0", "–"],
        ["ERM (Fishr)", "0", "3", "61.0 ± 1.0", "51.0", "+1.0"],
        ["Fishr", "1", "3", "70.0 ± 1.0", "–", "+9.0"],
        ["Fishr*", "10", "3", "70.0 ± 2.0", "49.0", "-9.0"],
    ],
    left=2,
    notes=["Accuracy in %.", "Δ ERM: difference to ERM in photo.", "Fishr: gamma 1 is selected."],
    keys=["method", "gamma", "seeds", "test", "test", "delta"],
    about={"Δ ERM: difference to ERM in photo.": ["delta"]},
    compared=frozenset([3, 4]),
)


def laid_out(**layout) -> Sheet:
    (sheet,) = lay_out([SHEET], Layout(**layout))
    return sheet


def test_nothing_asked_for_changes_nothing():
    assert laid_out() == SHEET


def test_the_note_on_missing_cells_stays_where_one_is_shown():
    rows = [["ERM", "–", "3", "X", "50.0", "–"], ["Fishr", "1", "3", "70.0", "49.0", "X ∘"]]
    sheet = Sheet(
        SHEET.title, SHEET.headers, rows, 2, ["Accuracy in %.", "X: missing."], SHEET.keys
    )
    for layout, stays in (
        (Layout(rows=["ERM"]), True), (Layout(rows=["Fishr"]), True),
        (Layout(columns=["method", "sketch"]), False),
        (Layout(rows=["Fishr"], columns=["method", "sketch"]), False),
    ):  # fmt: skip
        (shown,) = lay_out([sheet], layout)
        assert ("X: missing." in shown.notes) == stays


@pytest.mark.parametrize(
    ("columns", "headers"),
    [
        (["method", "sketch"], ["method", "sketch (test)"]),
        (["test", "method"], ["photo (test)", "sketch (test)", "method"]),
        (["method", "delta", "photo (test)"], ["method", "Δ ERM", "photo (test)"]),
        (["Δ ERM"], ["Δ ERM"]),
    ],
)
def test_columns_are_shown_in_the_order_asked_for(columns, headers):
    sheet = laid_out(columns=columns)
    assert list(sheet.headers) == headers
    assert [len(row) for row in sheet.rows] == [len(headers)] * 4
    assert len(sheet.alignment) == len(headers)
    assert to_text([sheet])


def test_a_note_goes_with_the_column_that_it_explains():
    assert SHEET.notes[1] in laid_out(columns=["method", "delta"]).notes
    assert list(laid_out(columns=["method", "photo"]).notes) == [SHEET.notes[0], SHEET.notes[2]]


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        (["ERM"], ["ERM", "ERM (Fishr)"]),  # the beginning of a name is enough
        (["Fishr 10", "ERM (Fishr)"], ["Fishr*", "ERM (Fishr)"]),
        (["Fishr", "Fishr 1"], ["Fishr", "Fishr*"]),
    ],
)
def test_rows_are_shown_in_the_order_asked_for(rows, shown):
    sheet = laid_out(rows=rows)
    assert [row[0] for row in sheet.rows] == shown
    hidden = 4 - len(shown)
    assert sheet.notes[-1].startswith(f"{hidden} row")


def test_a_sheet_without_any_of_the_rows_is_left_out():
    other = Sheet("vlcs", ["method", "a (test)"], [["IRM", "50.0"]], 1, [])
    assert [sheet.title for sheet in lay_out([SHEET, other], Layout(rows=["IRM"]))] == ["vlcs"]


def test_the_best_of_the_shown_rows_are_bold_as_printed():
    assert laid_out(bold_best=True).bold == {(2, 3), (3, 3), (1, 4)}
    assert laid_out(bold_best=True, rows=["ERM"]).bold == {(1, 3), (1, 4)}
    sheet = laid_out(bold_best=True, columns=["sketch", "method"])
    assert sheet.bold == {(1, 0)}
    assert "**51.0**" in to_markdown([sheet])
    assert laid_out(bold_best=True, rows=["Fishr"]).bold == {(0, 3), (1, 3)}
    assert laid_out(bold_best=True, rows=["ERM (Fishr)"]).bold == set()  # nothing to compare with


def test_names_are_changed_everywhere():
    sheet = laid_out(rename={"Fishr": "Ours", "photo": "photos", "pacs": "PACS", "gamma": "γ"})
    assert [row[0] for row in sheet.rows] == ["ERM", "ERM (Ours)", "Ours", "Ours*"]
    assert list(sheet.headers)[1:4] == ["γ", "seeds", "photos (test)"]
    assert sheet.title == "PACS; test domains photos, sketch"
    assert sheet.notes[1] == "Δ ERM: difference to ERM in photos."
    assert sheet.notes[2] == "Ours: gamma 1 is selected."  # the word gamma is no name


def test_names_are_changed_at_once_and_as_a_whole():
    layout = Layout(rename={"A": "B", "B": "A", "A-1": "C"})
    assert layout.renamed("A, B, A-1, AB, A_1 and A.") == "B, A, C, AB, A_1 and B."


def test_a_header_is_renamed_by_its_own_text():
    sheet = laid_out(rename={"photo (test)": "Photo", "delta": "gain"})
    assert sheet.headers[3] == "Photo"
    assert sheet.headers[5] == "gain"
    assert laid_out(rename={"Fishr": "Ours"}, rows=["ERM"]).rows[1][0] == "ERM (Ours)"


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"columns": ["metod"]}, "--columns=metod: there is no such column; there are method,"),
        ({"rows": ["Fish"]}, "--rows=Fish: there is no such row; there are ERM, ERM (Fishr) 0,"),
        ({"rename": {"test": "t"}}, "--rename=test: there is no such name"),  # of two columns
        ({"rename": {"Irm": "IRM"}}, "--rename=Irm: there is no such name; there are method,"),
    ],
)
def test_what_is_nowhere_is_refused_in_one_line(layout, said):
    with pytest.raises(ConfigError) as error:
        laid_out(**layout)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_header_of_several_columns_says_which_it_belongs_to_where_columns_are_chosen():
    sheet = Sheet(
        "t", ["method", "a", "published", "b", "published"], [["ERM", "1.0", "2.0", "3.0", "4.0"]],
        1, [], keys=["method", "a", "published a", "b", "published b"],
    )  # fmt: skip
    (one,) = lay_out([sheet], Layout(columns=["method", "published b"]))
    assert (list(one.headers), list(one.rows[0])) == (["method", "published"], ["ERM", "4.0"])
    (both,) = lay_out([sheet], Layout(columns=["method", "published"]))
    assert list(both.headers) == ["method", "published a", "published b"]
