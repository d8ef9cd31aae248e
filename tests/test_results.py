# The run directory and what is in it: exact round trips, whole writes, hand-computed crossings, figures that repeat.

from __future__ import annotations

import csv
import errno
import math
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from fedbilevel.errors import BadInput
from fedbilevel.results import (
    COLUMNS,
    SUMMARY_COLUMNS,
    RunDirectory,
    draw,
    read_history,
    summarise,
    write_history,
    write_summary,
    write_whole,
)
from fedbilevel.results.figure import curves

ROOT = Path(__file__).resolve().parents[1]


def row(algorithm="a", seed=0, round=0, accuracy=None, loss=1.0, **more):
    """One evaluation in which a round moves 10 bytes up, 20 down, and takes half a simulated second."""
    return {
        "algorithm": algorithm,
        "seed": seed,
        "iteration": round,
        "round": round,
        "uplink_bytes": 10 * round,
        "downlink_bytes": 20 * round,
        "simulated_seconds": 0.5 * round,
        "wall_seconds": 0.001,
        "upper_loss": loss,
        "lower_loss": 0.5,
        "test_loss": 0.25,
        "test_accuracy": accuracy,
        "hypergradient_norm": 1e-3,
        **more,
    }


def run(algorithm, seed, points, column="accuracy"):
    return [row(algorithm, seed, round, **{column: value}) for round, value in points]


def same(left, right):
    """Equal in type and in every bit; NaN equals NaN and 0.0 differs from -0.0."""
    return type(left) is type(right) and repr(left) == repr(right)


def nothing_temporary(folder):
    return not [path for path in folder.iterdir() if path.name.endswith(".part")]


# ---- history.csv


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


# ---- whole or not at all


def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "f"
    write_whole(target, b"old")

    def crash(file):
        file.write(b"half of the ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, crash)
    assert target.read_bytes() == b"old"
    assert nothing_temporary(tmp_path)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so_in_one_line(tmp_path, monkeypatch, stage):
    write_history(tmp_path / "h.csv", [row()])
    before = (tmp_path / "h.csv").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, stage, full)
    with pytest.raises(BadInput, match=r"h\.csv: got 'No space left on device'"):
        write_history(tmp_path / "h.csv", [row(), row()])
    monkeypatch.undo()
    assert (tmp_path / "h.csv").read_bytes() == before
    assert nothing_temporary(tmp_path)


def test_a_real_limit_on_file_size_does_no_harm_to_the_old_file(tmp_path):
    write_whole(tmp_path / "f", b"old")
    script = (
        "import resource, sys\n"
        "from fedbilevel.errors import BadInput\n"
        "from fedbilevel.results import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_whole(sys.argv[1], b'x' * 100_000)\n"
        "except BadInput as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "f")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert (tmp_path / "f").read_bytes() == b"old"
    assert nothing_temporary(tmp_path)


@pytest.mark.parametrize("writer", [lambda path: write_history(path, []), lambda path: write_summary(path, [])])
@pytest.mark.parametrize("where", ["missing/f.csv", "file/f.csv", "folder"])
def test_a_place_that_cannot_be_written_is_bad_input(tmp_path, writer, where):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="allowed: a file in a folder that can be written to"):
        writer(tmp_path / where)
    assert nothing_temporary(tmp_path)


def test_an_error_of_the_content_itself_is_passed_on(tmp_path):
    def broken(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write_whole(tmp_path / "f", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_link_goes_on_pointing_to_the_file_it_names(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


KILLED = """
import os, pathlib, signal, sys, time
from fedbilevel.results import read_history, write_history
path = pathlib.Path(sys.argv[1])
def rows(n):
    return [dict(algorithm="a", seed=0, iteration=i, round=n, upper_loss=i / 3) for i in range(n)]
write_history(path, rows(50))
inode = path.stat().st_ino
for attempt in range(25):
    child = os.fork()
    if child == 0:
        n = 50
        while True:
            n = 50 + (n + 37) % 400
            write_history(path, rows(n))
    while path.stat().st_ino == inode:
        time.sleep(0.0005)
    time.sleep(0.0013 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inode = path.stat().st_ino
    back = read_history(path)
    assert back and all(r["round"] == len(back) and r["upper_loss"] == i / 3 for i, r in enumerate(back)), attempt
print("parsed")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    """Every version has n rows that all say n, so that a mixture of two versions or a cut would show."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "h.csv")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "parsed\n", done.stderr


# ---- summary.csv


def test_crossings_of_an_accuracy_that_goes_up_and_down():
    """Seeds on unequal grids, target 0.8.

    Seed 0 crosses at round 20 (0.85), falls below at 30, ends at 0.75. Seed 1 is evaluated at 0, 7, 26 and crosses at
    26 with exactly 0.8. Seed 2 never does. Over the seeds that reached: rounds 20 and 26, mean 23, deviation
    sqrt((3^2 + 3^2) / 1) = sqrt(18). A round is 10 bytes up, 20 down, 0.5 s. Finals 0.75, 0.8, 0.7: mean 0.75,
    deviation 0.05. Best 0.85, 0.8, 0.79: mean 2.44 / 3.
    """
    rows = [
        *run("a", 0, [(0, 0.1), (10, 0.5), (20, 0.85), (30, 0.75)]),
        *run("a", 1, [(0, 0.1), (7, 0.6), (26, 0.8)]),
        *run("a", 2, [(0, 0.1), (40, 0.79), (80, 0.7)]),
    ]
    (line,) = summarise(rows, [0.8])
    root = math.sqrt(18)
    assert list(line) == list(SUMMARY_COLUMNS)
    assert line == {
        "algorithm": "a",
        "target_accuracy": 0.8,
        "seeds": 3,
        "seeds_reached": 2,
        "rounds_mean": 23.0,
        "rounds_std": pytest.approx(root),
        "uplink_bytes_mean": 230.0,
        "uplink_bytes_std": pytest.approx(10 * root),
        "downlink_bytes_mean": 460.0,
        "downlink_bytes_std": pytest.approx(20 * root),
        "simulated_seconds_mean": 11.5,
        "simulated_seconds_std": pytest.approx(root / 2),
        "final_accuracy_mean": pytest.approx(0.75),
        "final_accuracy_std": pytest.approx(0.05),
        "best_accuracy_mean": pytest.approx(2.44 / 3),
        "final_upper_loss_mean": 1.0,
        "final_upper_loss_std": 0.0,
    }


def test_one_seed_reached_has_no_deviation_and_none_reached_is_empty():
    rows = [*run("a", 0, [(0, 0.1), (5, 0.9)]), *run("a", 1, [(0, 0.1), (5, 0.3)])]
    once, never = summarise(rows, [0.9, 0.95])
    assert (once["seeds_reached"], once["rounds_mean"], once["rounds_std"]) == (1, 5.0, None)
    costs = [key for key in never if key.startswith(("rounds", "uplink", "downlink", "simulated"))]
    assert len(costs) == 8
    assert never["seeds_reached"] == 0
    assert [never[key] for key in costs] == [None] * 8
    assert never["final_accuracy_mean"] == pytest.approx(0.6)


def test_algorithms_keep_their_order_and_targets_theirs_with_rows_of_runs_interleaved():
    runs = zip(run("z", 0, [(0, 0.1), (9, 0.7)]), run("b", 0, [(0, 0.1), (4, 0.7)]), strict=True)
    lines = summarise([r for pair in runs for r in pair], [0.7, 0.5, 0.7])
    found = [(line["algorithm"], line["target_accuracy"], line["rounds_mean"]) for line in lines]
    assert found == [("z", 0.7, 9.0), ("z", 0.5, 9.0), ("b", 0.7, 4.0), ("b", 0.5, 4.0)]


def test_rows_out_of_order_are_read_by_round():
    (line,) = summarise(run("a", 0, [(30, 0.9), (10, 0.8), (0, 0.1), (20, 0.7)]), [0.7])
    assert (line["rounds_mean"], line["final_accuracy_mean"]) == (10.0, 0.9)


def test_nan_accuracy_reaches_nothing_and_shows_in_the_final_value():
    (line,) = summarise(run("a", 0, [(0, math.nan), (5, 0.6), (9, math.nan)]), [0.5])
    assert line["rounds_mean"] == 5.0
    assert math.isnan(line["final_accuracy_mean"])
    assert line["best_accuracy_mean"] == 0.6


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.96, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]),
        (0.9, [0.5, 0.6, 0.7, 0.8, 0.9]),
        (0.499, [0.1, 0.2, 0.3, 0.4]),
        (0.03, [0.01, 0.02]),
        (0.0, [None]),
        (math.nan, [None]),
    ],
)
def test_targets_are_chosen_among_those_that_some_run_reached(best, expected):
    rows = [*run("a", 0, [(0, 0.0), (5, best)]), *run("b", 0, [(0, 0.0), (5, 0.0)])]
    lines = summarise(rows, None)
    assert [line["target_accuracy"] for line in lines] == expected * 2


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5, 90, math.nan])
def test_a_target_that_is_no_accuracy_is_bad_input(target):
    with pytest.raises(BadInput, match="targets: got"):
        summarise(run("a", 0, [(0, 0.5)]), [target])


@pytest.mark.parametrize("targets", [None, [0.5, 0.9]])
def test_a_problem_without_accuracy_has_one_row_per_algorithm(targets):
    """Final losses 0.3 and 0.5: mean 0.4, deviation sqrt(2 * 0.1^2) = sqrt(0.02). Rounds 10 and 14, the whole run."""
    rows = [*run("a", 0, [(0, 2.0), (10, 0.3)], "loss"), *run("a", 1, [(0, 2.0), (14, 0.5)], "loss")]
    (line,) = summarise(rows, targets)
    assert (line["target_accuracy"], line["seeds"], line["seeds_reached"]) == (None, 2, None)
    assert line["final_upper_loss_mean"] == pytest.approx(0.4)
    assert line["final_upper_loss_std"] == pytest.approx(math.sqrt(0.02))
    assert (line["rounds_mean"], line["uplink_bytes_mean"]) == (12.0, 120.0)
    assert (line["final_accuracy_mean"], line["best_accuracy_mean"]) == (None, None)


def test_a_run_that_diverged_does_not_break_the_summary():
    rows = [*run("a", 0, [(1, 1.7e308)], "loss"), *run("a", 1, [(1, -1.7e308)], "loss")]
    assert summarise(rows, None)[0]["final_upper_loss_std"] == math.inf
    rows = [*run("a", 0, [(1, math.inf)], "loss"), *run("a", 1, [(1, 1.0)], "loss")]
    assert summarise(rows, None)[0]["final_upper_loss_mean"] == math.inf


def test_the_summary_file_has_its_columns_and_empty_fields(tmp_path):
    write_summary(tmp_path / "s.csv", summarise(run("a", 0, [(0, 0.1), (5, 0.5)]), [0.5, 0.9]))
    with open(tmp_path / "s.csv", newline="") as file:
        reached, never = csv.DictReader(file)
    assert tuple(reached) == SUMMARY_COLUMNS
    assert (reached["rounds_mean"], reached["rounds_std"], never["rounds_mean"]) == ("5.0", "", "")
    write_summary(tmp_path / "none.csv", summarise([], None))
    assert (tmp_path / "none.csv").read_text() == ",".join(SUMMARY_COLUMNS) + "\n"


# ---- figures


def rising(algorithms=5, seeds=3):
    return [
        row(f"method_{a}", seed, 10 * i * (a + 1), 0.9 - 0.8 * math.exp(-i * (a + 2) / 20) + 0.01 * seed)
        for a in range(algorithms)
        for seed in range(seeds)
        for i in range(12)
    ]


def test_the_mean_holds_each_seed_at_its_last_value_and_ends_with_the_shorter():
    """Seed 0 at 0, 10, 20, 30; seed 1 at 0, 15, 25. At 10 seed 1 still holds 0.2; nothing beyond 25, where both end."""
    rows = [*run("a", 0, [(0, 0.0), (10, 0.4), (20, 0.6), (30, 0.9)]), *run("a", 1, [(0, 0.2), (15, 0.8), (25, 1.0)])]
    (curve,) = curves(rows, "rounds", "test_accuracy")
    assert curve.x.tolist() == [0, 10, 15, 20, 25]
    assert curve.mean.tolist() == pytest.approx([0.1, 0.3, 0.6, 0.7, 0.8])
    assert curve.low.tolist() == [0.0, 0.2, 0.4, 0.6, 0.6]
    assert curve.high.tolist() == [0.2, 0.4, 0.8, 0.8, 1.0]


def test_each_algorithm_ends_where_it_ended_and_bytes_add_both_ways():
    rows = [*run("short", 0, [(0, 0.1), (3, 0.2)]), *run("long", 0, [(0, 0.1), (500, 0.9)])]
    assert [c.x[-1] for c in curves(rows, "rounds", "test_accuracy")] == [3, 500]
    assert [c.x[-1] for c in curves(rows, "bytes", "test_accuracy")] == [90, 15000]
    assert [c.x[-1] for c in curves(rows, "seconds", "test_accuracy")] == [1.5, 250]


def test_values_that_are_not_finite_are_left_out():
    (curve,) = curves(run("a", 0, [(0, 0.1), (1, math.nan), (2, math.inf), (3, 0.4)]), "rounds", "test_accuracy")
    assert (curve.x.tolist(), curve.mean.tolist()) == ([0, 3], [0.1, 0.4])


@pytest.mark.parametrize("x_axis", ["rounds", "bytes", "seconds"])
def test_the_same_rows_give_the_same_bytes_whatever_the_person_prefers(tmp_path, x_axis):
    import matplotlib

    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    before = dict(matplotlib.rcParams)
    first = draw(rising(), tmp_path / "1", title="Digits", x_axis=x_axis)
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "svg.hashsalt": "other"}):
        second = draw(rising(), tmp_path / "2", title="Digits", x_axis=x_axis)
    assert [path.name for path in first] == [f"{x_axis}_vs_accuracy.png", f"{x_axis}_vs_accuracy.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")


def test_pyplot_is_not_involved(tmp_path):
    script = (
        "import sys\nfrom fedbilevel.results import draw\n"
        "before = 'matplotlib.pyplot' in sys.modules\n"
        "draw([], sys.argv[1], title='x')\n"
        "print(before or 'matplotlib.pyplot' not in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def texts(path):
    return [
        " ".join("".join(node.itertext()).split()) for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_svg_names_every_algorithm_the_axes_and_the_targets(tmp_path):
    _, svg = draw(rising(12), tmp_path, title="Digits, 100 clients", targets=[0.42, 0.8], x_axis="rounds")
    shown = texts(svg)
    for expected in [*(f"method_{a}" for a in range(12)), "Digits, 100 clients", "test accuracy", "0.42", "0.8"]:
        assert expected in shown
    assert "communication rounds" in shown
    assert "line: mean of 3 seeds; band: lowest to highest seed" in shown


def bands(svg):
    return svg.read_text().count('id="FillBetweenPolyCollection')


def test_a_band_only_where_there_are_several_seeds(tmp_path):
    _, many = draw(rising(4, 3), tmp_path, title="x", x_axis="rounds")
    _, one = draw(rising(4, 1), tmp_path, title="x", x_axis="seconds")
    assert (bands(many), bands(one)) == (4, 0)
    assert "one seed" in texts(one)


@pytest.mark.parametrize(
    ("rounds", "x_axis", "unit"),
    [
        (5, "bytes", "(bytes)"),
        (2_000_000, "bytes", "(MB)"),
        (10**9, "bytes", "(GB)"),
        (100, "seconds", "(seconds)"),
        (2000, "seconds", "(minutes)"),
        (10**5, "seconds", "(hours)"),
    ],
)
def test_the_x_label_carries_a_unit_that_suits_the_size(tmp_path, rounds, x_axis, unit):
    _, svg = draw(run("a", 0, [(0, 0.1), (rounds, 0.9)]), tmp_path, title="x", x_axis=x_axis)
    assert any(text.endswith(unit) for text in texts(svg))


EDGES = {
    "empty": [],
    "one row": run("a", 0, [(0, 0.3)]),
    "one row each": [*run("a", 0, [(4, 0.3)]), *run("b", 0, [(4, 0.3)])],
    "nan": run("a", 0, [(0, math.nan), (1, math.nan)]),
    "constant": run("a", 0, [(0, 0.5), (1, 0.5)]),
    "seeds that do not meet": [*run("a", 0, [(0, 0.5), (1, 0.6)]), *run("a", 1, [(5, 0.5)])],
    "strange names": [*run("$x_{1}$", 0, [(0, 0.5)]), *run("_b", 0, [(0, 0.5)]), *run("算法 <&>", 0, [(0, 0.5)])],
    "no bytes": [row("a", 0, 1, 0.5, uplink_bytes=None)],
    "percent": run("a", 0, [(0, 10.0), (1, 90.0)]),
    "positive loss": run("a", 0, [(i, 10.0**-i) for i in range(9)], "loss"),
    "narrow loss": run("a", 0, [(i, 1.5 + 0.01 * i) for i in range(9)], "loss"),
    "zero loss": run("a", 0, [(i, 0.0) for i in range(3)], "loss"),
    "loss into zero": run("a", 0, [(i, max(0.0, 10.0**-i - 1e-9)) for i in range(12)], "loss"),
    "negative loss": run("a", 0, [(i, 1.0 - i) for i in range(5)], "loss"),
    "no loss": run("a", 0, [(0, None), (1, math.inf)], "loss"),
    "extremes": [
        *run("a", 0, [(0, 5e-324), (1, 1e-310), (2, 1.7e308)], "loss"),
        *run("a", 1, [(0, 5e-324), (1, 0.0), (2, 1.7e308)], "loss"),
    ],
    "wide": run("a", 0, [(i, 10.0 ** (20 * i - 190)) for i in range(19)], "loss"),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("targets", [None, [], [0.9]])
def test_odd_histories_draw_without_a_warning(tmp_path, name, targets):
    for x_axis in ("rounds", "bytes"):
        png, svg = draw(EDGES[name], tmp_path, title="An $odd_title", targets=targets, x_axis=x_axis)
        assert png.stat().st_size > 1000
        assert "An $odd_title" in texts(svg)
    names = {r["algorithm"] for r in EDGES[name]}
    if name in ("strange names", "extremes", "percent"):
        assert names <= set(texts(tmp_path / "rounds_vs_accuracy.svg"))


def test_a_problem_without_accuracy_shows_its_upper_loss_in_powers_of_ten(tmp_path):
    _, svg = draw(EDGES["positive loss"], tmp_path, title="x")
    assert svg.name == "rounds_vs_accuracy.svg"
    assert "upper loss" in texts(svg)
    assert any(re.fullmatch("10[−-]6", text.replace(" ", "")) for text in texts(svg))


def test_the_x_axis_is_one_of_three(tmp_path):
    with pytest.raises(BadInput, match="x_axis: got 'byte'; allowed: bytes, rounds, seconds"):
        draw([], tmp_path, title="x", x_axis="byte")


# ---- the run directory


def test_a_new_directory_is_made_with_its_parents_and_is_empty(tmp_path):
    made = RunDirectory.create(tmp_path / "runs" / "demo")
    assert made.path.is_dir()
    assert list(made.path.iterdir()) == []
    assert RunDirectory.create(made.path).path == made.path


def test_nothing_that_exists_is_touched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("full", "file", "file/below", "dangling"):
        with pytest.raises(BadInput) as caught:
            RunDirectory.create(tmp_path / name)
        assert caught.value.key == "out"
        assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dangling", "file", "full", "mine"]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(BadInput, match="Read-only file system") as caught:
        RunDirectory.create(tmp_path / "new")
    assert caught.value.key == "out"
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(BadInput, match=r"out: got .*Read-only file system"):
        RunDirectory.create(tmp_path / "other")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_parent_that_takes_no_folders_is_bad_input():
    with pytest.raises(BadInput, match=r"^out: got '/proc/"):
        RunDirectory.create("/proc/fedbilevel-run")


def test_open_wants_a_folder_with_a_config_and_a_history(tmp_path):
    with pytest.raises(BadInput, match="a folder that exists"):
        RunDirectory.open(tmp_path / "none")
    made = RunDirectory.create(tmp_path / "run")
    with pytest.raises(BadInput, match=r"no config\.toml"):
        RunDirectory.open(made.path)
    made.write_config("seeds = [0]\n")
    with pytest.raises(BadInput, match=r"no history\.csv"):
        RunDirectory.open(made.path)
    made.write_history(rows := rising(2, 2))
    opened = RunDirectory.open(made.path)
    assert opened.config_path.read_text() == "seeds = [0]\n"
    assert opened.read_history() == rows


def test_a_finished_run_has_every_file_of_the_contract(tmp_path):
    made = RunDirectory.create(tmp_path / "run")
    made.write_config("seeds = [0, 1]\n")
    made.write_history(rising(2, 2))
    summary = made.finish(made.read_history(), "Digits", [0.5])
    assert [line["algorithm"] for line in summary] == ["method_0", "method_1"]
    assert {p.name for p in made.path.iterdir()} == {
        "config.toml",
        "history.csv",
        "summary.csv",
        *(f"{x}_vs_accuracy.{kind}" for x in ("rounds", "bytes") for kind in ("png", "svg")),
    }
    before = {p.name: p.read_bytes() for p in made.path.iterdir()}
    made.finish(made.read_history(), "Digits", [0.5])
    assert {p.name: p.read_bytes() for p in made.path.iterdir()} == before
