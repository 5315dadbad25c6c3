from __future__ import annotations

import json
import math
import os
import pickle

import pytest

from fishr_exp.runs import content
from fishr_exp.runs.content import (
    UnreadableError,
    count,
    finite,
    flag,
    fraction,
    integer,
    label,
    mapping,
    number,
    optional,
    parse_object,
    parse_records,
    read_object,
    several,
    take,
    text,
)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (b"[1]", "it is a list, not an object"),
        (b"5", "it is 5, not an object"),
        (b"null", "it is null, not an object"),
        (b"{", "line 1 column 2"),
        (b"\xff", "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "limit"),
    ],
)
def test_what_is_no_object(written: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_object(written)


def test_an_object_may_be_nested_as_far_as_a_configuration_is() -> None:
    assert parse_object(b'{"a":' * 20 + b"1" + b"}" * 20)


def test_an_unreadable_file_is_named_with_the_fix(tmp_path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(UnreadableError, match=r"config.json cannot be read .No such file") as error:
        read_object(path)
    assert error.value.hint.startswith("restore this file, or pass resume=false")
    again = pickle.loads(pickle.dumps(error.value))  # other processes are told, too
    assert (type(again), str(again)) == (UnreadableError, str(error.value))
    os.mkfifo(path)
    with pytest.raises(UnreadableError, match=r"it is a pipe, not a file.; move it away"):
        read_object(path)


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"{", b'{"step": 3\0\0\0', b"\0\0\0", b""])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, tail: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert parse_records(path, b'{"step": ') == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo\n', b"[1]", b"\xff\xfe", b"\0\n", b"words"])
def test_a_last_line_that_was_not_cut_off_is_named(tmp_path, tail: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    with pytest.raises(UnreadableError, match=r"records.jsonl is damaged: line 3"):
        parse_records(path, b'{"step": ')


@pytest.mark.parametrize(
    ("check", "value", "found"),
    [
        (integer, -3, -3),
        (count, 0, 0),
        (number, 1, 1.0),
        (number, "-Infinity", -math.inf),
        (finite, 0.5, 0.5),
        (fraction, 1, 1.0),
        (flag, False, False),
        (text, "a", "a"),
        (label, 3, "3"),
        (optional(number), None, None),
        (several(count), [1, 2], [1, 2]),
        (mapping(several(text)), {"a": ["b"]}, {"a": ["b"]}),
    ],
)
def test_a_value_of_its_type(check, value, found) -> None:
    got = check(value, "key")
    assert got == found
    assert type(got) is type(found)


@pytest.mark.parametrize(
    ("check", "value", "problem"),
    [
        (integer, True, "key is true, not a whole number"),
        (integer, 1.0, "key is 1.0, not a whole number"),
        (count, -1, "key is -1, not a whole number, 0 or more"),
        (count, 2**63, "a whole number, 0 or more"),
        (number, "1", 'key is "1", not a number'),
        (number, 10**400, "not a number"),
        (finite, "NaN", "not a finite number"),
        (fraction, 1.01, r"key is 1.01, not a fraction in \[0, 1\]"),
        (flag, 1, "key is 1, not true or false"),
        (text, None, "key is null, not text"),
        (label, True, "not text"),
        (several(count), [1, "b"], r'key\[1\] is "b"'),
        (several(count), {}, "key is an object, not a list"),
        (mapping(count), {"a": "x" * 100}, r'key\.a is "x{39}\.\.\., not a whole'),
        (mapping(count), [], "key is a list, not an object"),
    ],
)
def test_a_value_of_another_type_is_named(check, value, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check(value, "key")


def test_a_key_that_is_missing() -> None:
    with pytest.raises(ValueError, match="lacks 'seed'"):
        take({}, "seed", integer)
    assert take({}, "seed", integer, 7) == 7


def test_nan_of_a_fraction_is_what_was_not_measured() -> None:
    assert math.isnan(fraction(json.loads("NaN"), "key"))
    assert content.START_AGAIN.startswith("start its run again with resume=false")
