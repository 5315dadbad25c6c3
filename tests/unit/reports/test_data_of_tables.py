"""Rows whose runs were on other data are marked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fishr_exp.reports.sheets.sheet import FORMATS
from fishr_exp.reports.sheets.table_sheet import table_sheet
from fishr_exp.reports.tables.data import on_other_data
from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.reading import read_runs

IMAGES = {"_target_": "fishr_exp.data.datasets.image_folder.image_folder", "name": "pacs"}


def done(factory, method, seed, data, dataset=IMAGES):
    """A run that recorded digests of its data, or none."""
    folder = factory.done(method, None if method == "erm" else 1.0, seed, 0.5, dataset=dataset)
    path = folder.path / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, **({} if data is None else {"data": data})}))


def sheet(factory):
    (table,) = build_tables(read_runs(factory.root).done)
    return table_sheet(table)


def test_a_row_on_other_data_is_marked_and_the_domains_are_named(factory):
    for seed in (0, 1):
        done(factory, "erm", seed, {"photo": "a", "sketch": "b"})
        done(factory, "fishr", seed, {"photo": "a", "sketch": "c" if seed else "b"})
    found = sheet(factory)
    assert [row[0] for row in found.rows] == ["ERM", "Fishr†"]
    (note,) = [note for note in found.notes if note.startswith("†")]
    assert "labels of sketch than" in note
    assert r"Fishr$\dagger$" in FORMATS["latex"]([found])


@pytest.mark.parametrize("other", [{"photo": "a"}, {}, None])
def test_the_same_data_and_none_recorded_are_not_marked(factory, other):
    done(factory, "erm", 0, {"photo": "a"})
    done(factory, "fishr", 0, other)
    found = sheet(factory)
    assert [row[0] for row in found.rows] == ["ERM", "Fishr"]
    assert "†" not in "".join(found.notes)


def test_domains_of_one_name_in_two_datasets_are_not_compared(factory):
    done(factory, "erm", 0, {"sketch": "a"})
    done(factory, "fishr", 0, {"sketch": "b"})
    (table,) = build_tables(read_runs(factory.root).done)
    one, other = table.rows
    assert on_other_data([one, other]) == {1: ["sketch"]}
    elsewhere = replace(other, runs=tuple(replace(run, dataset="other") for run in other.runs))
    assert on_other_data([one, elsewhere]) == {}


def test_data_that_follow_a_seed_are_compared_at_that_seed(factory):
    for seed in (0, 1):
        for method in ("erm", "fishr"):
            done(factory, method, seed, {"plus90": f"of {seed}"}, {"_target_": "x", "seed": seed})
    assert [row[0] for row in sheet(factory).rows] == ["ERM", "Fishr"]


def test_a_domain_that_may_lack_classes_is_said(factory):
    done(factory, "erm", 0, None, {**IMAGES, "missing_classes": "allow"})
    assert any("missing_classes=allow" in note for note in sheet(factory).notes)
