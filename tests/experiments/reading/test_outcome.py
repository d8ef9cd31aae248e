# The tables that a person reads: every seed counted, within 80 columns, and fit to be pasted.

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.reading.formats import latex, markdown, print_sheets
from experiments.reading.report import compared
from fedbilevel.results import summarise
from fedbilevel.results.targets import Target
from fedbilevel.tables.outcome import sheets
from fedbilevel.tables.sheet import Sheet
from tests.fedbilevel.results.rows import run


def printed(*sheets, **console):
    stream = io.StringIO()
    print_sheets(Console(file=stream, width=10_000, **console), sheets)
    return stream.getvalue().splitlines()


def demo():
    """Of three seeds `sure` arrives three times, `rare` once, `never` not at all; `one` has a single seed."""
    rows = []
    for seed, at in enumerate((640, 700, 860)):
        rows += run("sure", seed, [(at - 8, 0.94), (at + 8, 0.96), (900, 0.95)])
    for seed in range(3):
        rows += run("rare", seed, [(838, 0.94), (854, 0.96 if seed == 0 else 0.94), (900, 0.93)])
        rows += run("never", seed, [(0, 0.1), (900, 0.9)])
    return [*rows, *run("one", 0, [(0, 0.95), (900, 0.97)])]


def test_a_median_on_a_seed_that_never_arrived_is_a_bound_and_its_rank_is_behind():
    """A round is 10 bytes up, 20 down, half a second; every row says 0.001 s of wall clock."""
    first, _ = sheets(summarise(demo(), [0.95]))
    assert first.title == "Spent until test accuracy ≥ 0.95: median of the seeds (lowest–highest)"
    assert first.columns == ["algorithm", "seeds", "rounds", "kB up", "kB down", "sim. s", "wall s"]
    assert first.rows == [
        ["sure", "3/3", "700 (640–860)", "7.00", "14.0", "350", "0.00100"],
        ["rare", "1/3", "> 900 (846–)", "> 9.00", "> 18.0", "> 450", "> 0.00100"],
        ["never", "0/3", "> 900", "> 9.00", "> 18.0", "> 450", "> 0.00100"],
        ["one", "1/1", "0", "0", "0", "0", "0.00100"],
    ]
    assert first.note.startswith("> : more than that")
    assert sheets(summarise(run("a", 0, [(0, 0.5)]), [0.5]))[0].note == ""


def test_the_ends_are_medians_too_and_seeds_are_told_where_they_differ():
    ends = sheets(summarise(demo(), [0.95]))[-1]
    assert ends.title == "Where the runs ended: median of the seeds (lowest–highest)"
    assert ends.columns == ["algorithm", "seeds", "test accuracy", "best", "upper loss"]
    assert ends.rows[1] == ("rare", "3", "0.9300", "0.9400", "1.00")
    rows = [r for seed in range(4) for r in run("a", seed, [(0, 1.0), (10 + seed, 0.4 - 0.1 * seed)], "loss")]
    (alone,) = sheets(summarise(rows, []))
    assert alone.title == "Where the runs ended: median of 4 seeds (quartiles)"
    assert alone.columns == ["algorithm", "rounds", "upper loss", "test loss"]
    # of 10 to 13 the quartiles are 10.75 and 12.25; of 0.1 to 0.4 they are 0.175 and 0.325
    assert alone.rows == [("a", "11.5 (10.8–12.2)", "0.250 (0.175–0.325)", "0.250")]


def test_a_column_that_is_not_measured_has_no_numbers():
    rows = [*run("a", 0, [(0, 0.1), (9, 0.2)]), *run("b", 0, [(0, 0.1), (9, 0.2)])]
    rows[1]["metric_gap"] = 0.5
    gap, ends = sheets(summarise(rows, [Target(column="metric_gap", at_most=1.0)]))
    assert gap.title == "Spent until gap ≤ 1"
    assert [row[1:3] for row in gap.rows] == [["1/1", "9"], ["—", "—"]]
    assert ends.columns[-1] == "gap"
    assert [row[-1] for row in ends.rows] == ["0.500", "—"]


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_fit_80_columns(terminal):
    rows = []
    for name in ("fedavg-alternating (quadratic-20260102-030405)", "aggitd", "x" * 80):
        for seed in range(3):
            rows += run(name, seed, [(0, 0.123456), (123456 + 7 * seed, 0.6 + 0.01 * seed), (10**6, 0.4)])
    lines = printed(*sheets(summarise(rows, None)), force_terminal=terminal, color_system=None)
    assert max(map(len, lines)) <= 80
    text = "".join("\n".join(lines).split())
    assert "x" * 36 in text
    for word in ("fedavg-alternating", "upperloss", "walls", "best"):
        assert word in text


def test_a_comparison_has_its_ratios_beside_the_rounds():
    rows = [*run("a (x)", 0, [(0, 0.0), (40, 1.0)]), *run("a (y)", 0, [(0, 0.0), (60, 1.0)]), *run("b", 0, [(0, 0.0)])]
    bases = {"a (x)": ("a", Path("x")), "a (y)": ("a", Path("y")), "b": ("b", Path("y"))}
    first, _ = sheets(compared(summarise(rows, [0.5]), bases, Path("x")))
    assert first.columns[2:4] == ["rounds", "ratio"]
    assert [row[2:4] for row in first.rows] == [["20", "1.00"], ["30", "1.50"], ["> 0", "—"]]


def test_names_and_numbers_survive_where_they_are_pasted():
    sheet = Sheet("50 % of it", ["algorithm", "loss ≤ 1"], [["a_b|c", "> 5 (3–)"], [r"x\y & z", "—"]])
    assert markdown(sheet).splitlines()[2:] == [
        "| algorithm | loss ≤ 1 |",
        "|:---|---:|",
        r"| a_b\|c | > 5 (3–) |",
        r"| x\\y & z | — |",
    ]
    assert latex(sheet).splitlines()[3:] == [
        r"algorithm & loss $\leq$ 1 \\",
        r"\midrule",
        r"a\_b|c & $>$ 5 (3--) \\",
        r"x\textbackslash{}y \& z & --- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
