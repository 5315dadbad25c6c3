"""Changes how a sheet is shown: its rows and columns, their names, and the best numbers in bold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.sheets.sheet import MISSING, Sheet

MARKS = "*†"  # after a row's name
TEST = " (test)"  # after a test domain in a header
# Words of headers and notes that are no names: renamed in the header only.
_WORDS = {
    "method", "gamma", "seeds", "trials", "train", "validation", "test", "published", "p",
    "delta", "interval",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What a user asks for; empty: all as it is."""

    columns: Sequence[str] = ()  # by header or key, in this order
    rows: Sequence[str] = ()  # by the beginning of a row's text cells, in this order
    rename: Mapping[str, str] = field(default_factory=dict)
    bold_best: bool = False

    def renamed(self, text: str) -> str:
        """Replace whole names in a text, all at once."""
        names = [re.escape(name) for name in sorted(self.rename, key=len, reverse=True)]
        names = [name for name in names if name not in _WORDS]
        if not names:
            return text
        pattern = rf"(?<![\w.-])(?:{'|'.join(names)})(?![\w-])"
        return re.sub(pattern, lambda found: self.rename[found.group()], text)


def lay_out(sheets: Sequence[Sheet], layout: Layout) -> list[Sheet]:
    """Apply a layout to sheets; those that have none of the rows are left out.

    Raises:
        ConfigError: If a column, a row or a name is in none of the sheets.
    """
    _check("--rows", layout.rows, [_row_names(s) for s in sheets], _matches_row)
    _check("--columns", layout.columns, [_column_names(s) for s in sheets], _matches_column)
    _check_names(layout, sheets)
    found = [_choose_rows(sheet, layout.rows) for sheet in sheets] if layout.rows else list(sheets)
    found = [sheet for sheet in found if sheet.rows]
    if layout.bold_best:
        found = [replace(sheet, bold=_best(sheet)) for sheet in found]
    if layout.columns:
        found = [_choose_columns(sheet, layout.columns) for sheet in found]
        found = [sheet for sheet in found if sheet.headers]
    if layout.rows or layout.columns:
        found = [_explain_what_is_shown(sheet) for sheet in found]
    return [_rename(sheet, layout) for sheet in found] if layout.rename else found


def _matches_row(name: str, row: str) -> bool:
    return f"{row} ".startswith(f"{name} ")


def _matches_column(name: str, column: str) -> bool:
    return name in (column, column.removesuffix(TEST))


def _row_names(sheet: Sheet) -> list[str]:
    """Return what rows are called: their text cells, without marks."""
    return [
        " ".join(cell.rstrip(MARKS) for cell in row[: sheet.left] if cell != "–")
        for row in sheet.rows
    ]


def _column_names(sheet: Sheet) -> list[str]:
    return [*dict.fromkeys([*sheet.headers, *sheet.keys])]


def _check(
    option: str,
    wanted: Sequence[str],
    known: Sequence[Sequence[str]],
    matches: Callable[[str, str], bool],
) -> None:
    names = list(dict.fromkeys(name for of in known for name in of))
    for name in wanted:
        if not any(matches(name, there) for there in names):
            what = option.strip("-").removesuffix("s")
            raise ConfigError(option, name, f"there is no such {what}; there are {_few(names)}")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' if "," in name else name for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def _choose_rows(sheet: Sheet, wanted: Sequence[str]) -> Sheet:
    names = _row_names(sheet)
    places = list(
        dict.fromkeys(
            place for name in wanted for place, row in enumerate(names) if _matches_row(name, row)
        )
    )
    hidden = len(sheet.rows) - len(places)
    more = [f"{hidden} row{'s' * (hidden > 1)} of the table not shown."] if hidden else []
    return replace(sheet, rows=[sheet.rows[place] for place in places], notes=[*sheet.notes, *more])


def _best(sheet: Sheet) -> frozenset[tuple[int, int]]:
    """Return the cells with the highest number of their column, as printed: all of equal ones."""
    found = set()
    for column in sheet.compared:
        numbers = {place: _number(row[column]) for place, row in enumerate(sheet.rows)}
        known = {place: number for place, number in numbers.items() if number is not None}
        if len(known) > 1:
            best = max(known.values())
            found |= {(place, column) for place, number in known.items() if number == best}
    return frozenset(found)


def _number(cell: str) -> float | None:
    match = re.match(r"[+-]?\d+(?:\.\d+)?", cell)
    return float(match.group()) if match else None


def _choose_columns(sheet: Sheet, wanted: Sequence[str]) -> Sheet:
    keys = sheet.keys or sheet.headers
    places = list(
        dict.fromkeys(
            place
            for name in wanted
            for place, (header, key) in enumerate(zip(sheet.headers, keys, strict=True))
            if _matches_column(name, header) or name == key
        )
    )
    is_text = [place < sheet.left or place >= len(keys) - sheet.last for place in places]
    left = next((i for i, text in enumerate(is_text) if not text), len(places))
    last = next((i for i, text in enumerate(reversed(is_text)) if not text), 0)
    shown = {keys[place] for place in places}
    headers = [sheet.headers[place] for place in places]
    return replace(
        sheet,
        # A header of several columns says which it belongs to only beside that column.
        headers=[
            keys[place] if headers.count(header) > 1 else header
            for place, header in zip(places, headers, strict=True)
        ],
        keys=[keys[place] for place in places],
        rows=[[row[place] for place in places] for row in sheet.rows],
        left=left,
        last=last if left < len(places) else 0,
        notes=[n for n in sheet.notes if n not in sheet.about or shown & {*sheet.about[n]}],
        compared=frozenset(places.index(c) for c in sheet.compared if c in places),
        bold=frozenset((row, places.index(c)) for row, c in sheet.bold if c in places),
    )


def _explain_what_is_shown(sheet: Sheet) -> Sheet:
    """Leave out the note on missing cells where none is left."""
    if any(cell.split()[:1] == [MISSING] for row in sheet.rows for cell in row[sheet.left :]):
        return sheet
    return replace(sheet, notes=[n for n in sheet.notes if not n.startswith(f"{MISSING}: ")])


def _check_names(layout: Layout, sheets: Iterable[Sheet]) -> None:
    texts, names = "", []
    for sheet in sheets:
        names += [
            *sheet.headers,
            *_unique(sheet.keys),
            *(cell for row in sheet.rows for cell in row[: sheet.left]),
        ]
        texts += f"{sheet.title} "
    for name in layout.rename:
        at_start = any(_matches_row(name, of.rstrip(MARKS)) for of in names)
        in_title = Layout(rename={name: ""}).renamed(texts) != texts
        if not at_start and not in_title and not any(_matches_column(name, of) for of in names):
            allowed = _few(list(dict.fromkeys(name for name in names if name != "–")))
            raise ConfigError("--rename", name, f"there is no such name; there are {allowed}")


def _unique(keys: Sequence[str]) -> list[str]:
    return [key for key in keys if [*keys].count(key) == 1]


def _rename(sheet: Sheet, layout: Layout) -> Sheet:
    def header(text: str, key: str) -> str:
        if text in layout.rename:
            return layout.rename[text]
        if key in layout.rename and key in _unique(keys):
            return layout.rename[key]
        domain = text.removesuffix(TEST)
        if domain != text and domain in layout.rename:
            return f"{layout.rename[domain]}{TEST}"
        return layout.renamed(text)

    rename = layout.renamed
    keys = sheet.keys or sheet.headers
    return replace(
        sheet,
        title=rename(sheet.title),
        headers=[header(text, key) for text, key in zip(sheet.headers, keys, strict=True)],
        rows=[
            [rename(cell) if place < sheet.left else cell for place, cell in enumerate(row)]
            for row in sheet.rows
        ],
        notes=[rename(note) for note in sheet.notes],
    )
