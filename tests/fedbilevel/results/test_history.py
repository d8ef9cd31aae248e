# history.csv: exact round trips, and damage that is named by file and line.

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pytest

from fedbilevel.errors import BadInput
from fedbilevel.results import COLUMNS, read_history, write_history
from tests.fedbilevel.results.rows import row


def same(left, right):
    """Equal in type and in every bit; NaN equals NaN and 0.0 differs from -0.0."""
    return type(left) is type(right) and repr(left) == repr(right)


def test_the_columns_are_the_contract():
    assert ",".join(COLUMNS) == (
        "algorithm,seed,iteration,round,uplink_bytes,downlink_bytes,simulated_seconds,wall_seconds,"
        "upper_loss,lower_loss,test_loss,test_accuracy,hypergradient_norm"
    )


@pytest.mark.parametrize(
    "value",
    [0.1, 1 / 3, 1e-300, 5e-324, 1.7976931348623157e308, -0.0, math.nan, math.inf, -math.inf, 1e16, 2.0, None, 7, -3],
)
def test_every_value_comes_back_as_it_was(tmp_path, value):
    write_history(tmp_path / "h.csv", [row(loss=value, metric_gap=value)])
    (back,) = read_history(tmp_path / "h.csv")
    assert same(back["upper_loss"], value)
    assert same(back["metric_gap"], value)


def test_random_doubles_come_back_bit_for_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**63, 2000, dtype=np.int64)
    values = bits.view(np.float64)
    write_history(tmp_path / "h.csv", [row(loss=float(v)) for v in values])
    back = np.array([r["upper_loss"] for r in read_history(tmp_path / "h.csv")])
    number = ~np.isnan(values)
    assert np.array_equal(back[number].view(np.int64), bits[number])
    assert np.isnan(back[~number]).all()


def test_integers_beyond_two_to_the_53_stay_exact(tmp_path):
    write_history(tmp_path / "h.csv", [row(uplink_bytes=2**53 + 1, seed=np.int64(4))])
    (back,) = read_history(tmp_path / "h.csv")
    assert same(back["uplink_bytes"], 2**53 + 1)
    assert same(back["seed"], 4)


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    write_history(tmp_path / "h.csv", [row(loss=np.float32(0.1), accuracy=np.float64(0.2))])
    (back,) = read_history(tmp_path / "h.csv")
    assert same(back["upper_loss"], float(np.float32(0.1)))
    assert same(back["test_accuracy"], 0.2)


def test_metric_columns_follow_sorted_and_are_empty_where_a_row_has_none(tmp_path):
    write_history(tmp_path / "h.csv", [row(metric_z=1.5), row(metric_a=2), row()])
    with open(tmp_path / "h.csv", newline="") as file:
        table = list(csv.reader(file))
    assert tuple(table[0]) == (*COLUMNS, "metric_a", "metric_z")
    assert [line[-2:] for line in table[1:]] == [["", "1.5"], ["2", ""], ["", ""]]
    assert [(r["metric_a"], r["metric_z"]) for r in read_history(tmp_path / "h.csv")] == [
        (None, 1.5),
        (2, None),
        (None, None),
    ]


@pytest.mark.parametrize("name", ["a,b", 'say "x"', "two\nlines", "été", "$x_1$", " spaced "])
def test_any_algorithm_name_survives(tmp_path, name):
    write_history(tmp_path / "h.csv", [row(name), row("b")])
    assert [r["algorithm"] for r in read_history(tmp_path / "h.csv")] == [name, "b"]


def test_no_rows_give_a_header_that_reads_as_no_rows(tmp_path):
    write_history(tmp_path / "h.csv", [])
    assert (tmp_path / "h.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert read_history(tmp_path / "h.csv") == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"round": 2.0}, TypeError),
        ({"upper_loss": "low"}, TypeError),
        ({"algorithm": ""}, TypeError),
        ({"accuracy_of_test": 0.1}, ValueError),
    ],
)
def test_a_row_that_could_not_be_read_back_is_refused_before_the_file_is_touched(tmp_path, bad, error):
    write_history(tmp_path / "h.csv", [row()])
    before = (tmp_path / "h.csv").read_bytes()
    with pytest.raises(error, match=next(iter(bad))):
        write_history(tmp_path / "h.csv", [{**row(), **bad}])
    assert (tmp_path / "h.csv").read_bytes() == before


HEADER = ",".join(COLUMNS)
LINE = "a,0,1,2,3,4,0.5,0.5,1.0,1.0,1.0,0.5,1.0"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", 1),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00garbage", 1),
        (f"{HEADER}\n{LINE}\n".encode() + b"\xff\xfe\n", 3),
        (f"{HEADER}\n{LINE}\n".encode() + b"\0" * 40 + b"\n", 3),
        (b"\n", 1),
        (b"some,other,table\n1,2,3\n", 1),
        (f"{HEADER.replace(',round', '')}\n".encode(), 1),
        (f"{HEADER},round\n".encode(), 1),
        (f"{HEADER},speed\n".encode(), 1),
        (f"{HEADER}\n{LINE}\n{LINE},9\n".encode(), 3),
        (f"{HEADER}\n{LINE}\na,0,1\n".encode(), 3),
        (f"{HEADER}\n{LINE}\n\n{LINE}\n".encode(), 3),
        (f"{HEADER}\n{LINE}\n{LINE.replace('0.5', 'half', 1)}\n".encode(), 3),
        (f"{HEADER}\n{LINE.replace('a,0,1', 'a,0,1.5')}\n".encode(), 2),
        (f"{HEADER}\n{LINE.replace('a,0,1', 'a,0,1_0')}\n".encode(), 2),
        (f"{HEADER}\n{LINE.replace('a,0', ',0')}\n".encode(), 2),
        (f"{HEADER}\n{LINE.replace('a,0,1', 'a,0,' + '9' * 5000)}\n".encode(), 2),
        (f'{HEADER}\n{LINE}\n"a,0,1,2,3\n'.encode(), 3),
        (f"{HEADER}\n{LINE}\n{LINE[:-1]}".encode(), 3),
        (f"{HEADER}\n{LINE}".encode(), 2),
        (HEADER.encode(), 1),
        (f"{HEADER}\n{'x' * 200_000}\n".encode(), 2),
    ],
)
def test_a_mangled_history_is_named_by_file_and_line(tmp_path, content, line):
    (tmp_path / "h.csv").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_history(tmp_path / "h.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'h.csv'}, line {line}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_every_cut_of_a_history_is_refused_or_is_a_prefix(tmp_path):
    rows = [row("a", 0, i, 0.1 * i, metric_gap=0.5) for i in range(3)]
    write_history(tmp_path / "h.csv", rows)
    whole = (tmp_path / "h.csv").read_bytes()
    kept = set()
    for cut in range(len(whole)):
        (tmp_path / "cut.csv").write_bytes(whole[:cut])
        try:
            back = read_history(tmp_path / "cut.csv")
        except BadInput:
            continue
        assert back == rows[: len(back)]
        kept.add(len(back))
    assert kept == {0, 1, 2}


@pytest.mark.parametrize("name", ["none.csv", "."])
def test_a_missing_file_or_a_folder_is_bad_input(tmp_path, name):
    with pytest.raises(BadInput, match=re.escape(str(tmp_path))):
        read_history(tmp_path / name)


def test_a_spreadsheet_that_saved_the_file_did_no_harm(tmp_path):
    (tmp_path / "h.csv").write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\r\n{LINE}\r\n".encode())
    (back,) = read_history(tmp_path / "h.csv")
    assert list(back.values()) == ["a", 0, 1, 2, 3, 4, 0.5, 0.5, 1.0, 1.0, 1.0, 0.5, 1.0]
