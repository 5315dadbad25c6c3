"""LaTeX: what a document finds, and what pdflatex makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from fishr_exp.reports.sheets.latex import COLUMN, escape_latex, to_latex, to_latex_notes
from fishr_exp.reports.sheets.sheet import Sheet
from fishr_exp.reports.sheets.table_sheet import table_sheet
from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.reading import read_runs

from .test_sheet import odd, sweep

NARROW = Sheet(
    "PACS", ["method", "gamma", "a (test)"], [["ERM", "0", "50.0"]], 2, ["In %.", "More."]
)
WIDE = replace(NARROW, headers=["method", *["accuracy"] * 12], rows=[["ERM", *["50.0 ± 1.0"] * 12]])


def sheets(factory):
    return [table_sheet(table) for table in build_tables(read_runs(factory.root).done)]


def test_escapes():
    assert escape_latex("a_b & 5 % {x}\\ ~^") == (
        r"a\_b \& 5 \% \{x\}\textbackslash{} \textasciitilde{}\textasciicircum{}"
    )
    assert escape_latex("é Δ 素") == r"é $\Delta$ [U+7D20]"


def test_notes_are_apart_from_the_table_which_says_what_its_numbers_are():
    table, notes = to_latex([NARROW]), to_latex_notes([NARROW])
    assert r"\caption{PACS. In \%.}" in table
    assert "More." not in table
    assert notes == "\\paragraph{Table~\\ref{tab:pacs}.} More.\n"


def test_every_table_has_a_label_of_its_own():
    others = [NARROW, replace(NARROW, title="PACS!"), replace(NARROW, label="PACS é A_1")]
    found = re.findall(r"\\label{(.*)}", to_latex([*others, replace(NARROW, title="素")]))
    assert found == ["tab:pacs", "tab:pacs--2", "tab:pacs-e-a-1", "tab:runs"]
    assert re.findall(r"\\ref{(.*?)}", to_latex_notes(others)) == found[:3]


def test_a_wide_table_is_across_both_columns():
    narrow, wide = to_latex([NARROW]), to_latex([WIDE])
    assert "\\begin{table}\n" in narrow
    assert "\\footnotesize" not in narrow
    assert "\\begin{table*}\n" in wide
    assert "\\end{table*}\n" in wide


def test_headers_wider_than_their_columns_have_two_lines():
    header = re.search(r"toprule\n(.*)", to_latex([NARROW])).group(1)
    assert header.strip() == r"method & $\gamma$ & \shortstack[r]{a \\ (test)} \\"


def test_minus_signs_also_in_bold():
    sheet = replace(NARROW, rows=[["ERM", "0", "-5.0"]], bold=frozenset([(0, 2)]))
    assert r"\textbf{$-$5.0}" in to_latex([sheet])


needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no pdflatex on this machine"
)


def compiled(folder, body: str, options: str = "") -> str:
    """Compile a document twice, as references need, and return what LaTeX said at last."""
    (folder / "paper.tex").write_text(
        rf"\documentclass[{options}]{{article}}\usepackage{{booktabs,graphicx}}"
        rf"\begin{{document}}{body}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, said[-2000:]
    return said


@needs_latex
@pytest.mark.parametrize("options", ["", "twocolumn"])
def test_it_compiles(factory, tmp_path, options):
    sweep(factory)
    odd(factory)
    long = "".join(map(chr, range(0x21, 0x180))) + "e\u0301素"
    factory.done("erm", None, 0, {long: 0.5})
    found = sheets(factory)
    (tmp_path / "table.tex").write_text(to_latex(found))
    (tmp_path / "table-notes.tex").write_text(to_latex_notes(found))
    said = compiled(tmp_path, r"\input{table}\clearpage\input{table-notes}", options)
    assert not re.findall(r"Missing character|undefined references|multiply defined", said)
    # A domain's name that is one word of 300 letters, in captions; the tables fit.
    overfull = re.findall(r"^Overfull \\hbox .* in paragraph.*", said, re.M)
    assert len(overfull) <= 2
    assert not re.findall(r"^Overfull \\hbox .* in alignment.*", said, re.M)


@needs_latex
def test_a_sweep_in_two_columns_is_not_made_smaller(factory, tmp_path):
    sweep(factory)
    (table,) = sheets(factory)
    measured = re.sub(r"\\resizebox{.*?}{!}", r"\\measured", to_latex([table]))
    macro = r"\newcommand{\measured}[1]{\setbox0=\hbox{#1}\typeout{WIDTH \the\wd0}\box0}"
    said = compiled(tmp_path, macro + measured, "twocolumn")
    width = float(re.search(r"WIDTH ([\d.]+)pt", said).group(1))
    assert COLUMN < width < 410  # the text of LaTeX's own two-column article is 410 wide
