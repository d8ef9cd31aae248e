# Figures: what they say, over which range, and drawings that repeat to the byte.

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fedbilevel.errors import BadInput
from fedbilevel.figures import canvas
from fedbilevel.figures.canvas import framed, spaced
from fedbilevel.figures.curves import curves
from fedbilevel.figures.figure import draw
from fedbilevel.figures.scales import scale_x, scale_y
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.targets import Target
from tests.fedbilevel.results.rows import rising, row, run

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("x_axis", ["rounds", "bytes", "seconds", "wall"])
def test_the_same_rows_give_the_same_bytes_whatever_the_person_prefers(tmp_path, x_axis):
    import matplotlib

    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    before = dict(matplotlib.rcParams)
    first = draw(rising(), tmp_path / "1", title="Digits", x_axis=x_axis)
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "svg.hashsalt": "other"}):
        second = draw(rising(), tmp_path / "2", title="Digits", x_axis=x_axis)
    assert [path.name for path in first] == [f"{x_axis}_vs_accuracy.{kind}" for kind in ("png", "svg", "pdf")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[2].read_bytes().startswith(b"%PDF")


def test_pyplot_is_not_involved(tmp_path):
    script = (
        "import sys\nfrom fedbilevel.figures.figure import draw\n"
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


def drawn(tmp_path, rows, **options):
    """The texts of the figure, and its svg."""
    _, svg, _ = draw(rows, tmp_path, title="x", **options)
    return texts(svg), svg.read_text()


def test_the_svg_names_every_algorithm_the_axes_and_the_targets(tmp_path):
    _, svg, _ = draw(rising(12), tmp_path, title="Digits, 100 clients", targets=[0.42, 0.8], x_axis="rounds")
    shown = texts(svg)
    for expected in [*(f"method_{a}" for a in range(12)), "Digits, 100 clients", "test accuracy", "0.42", "0.8"]:
        assert expected in shown
    assert "communication rounds" in shown
    assert "median of 3 seeds; band: lowest to highest" in shown


def test_a_long_title_is_wrapped(tmp_path):
    words = "digits, 20 clients, Dirichlet(0.3); data.alpha = 0.1; options.lower_rounds = 3; problem.l2 = 0.1"
    _, svg, _ = draw(rising(1), tmp_path, title=words)
    assert words not in texts(svg)
    assert words in " ".join(reversed(texts(svg)))


@pytest.mark.parametrize(
    ("rows", "about"),
    [
        (rising(2, 1), "one seed"),
        (rising(2, 4), "median of 4 seeds; band: quartiles"),
        ([*rising(1, 3), *run("b", 0, [(0, 0.1), (9, 0.9)])], "median of 1 to 3 seeds; band: lowest to highest"),
        ([*rising(1, 2), *run("method_0", 2, [(0, 0.1), (9, 0.9)])], "; thin: some seeds have ended"),
    ],
)
def test_the_caption_says_what_lines_and_bands_are(tmp_path, rows, about):
    shown, _ = drawn(tmp_path, rows)
    assert any(text == about or (about.startswith(";") and text.endswith(about)) for text in shown)


def test_runs_that_broke_off_are_crossed_and_the_caption_says_so(tmp_path):
    whole, _ = drawn(tmp_path, rising(2))
    shown, _ = drawn(tmp_path, rising(2), ends=Ends(frozenset({("method_0", 1)})))
    assert not any("cross" in text for text in whole)
    assert any(text.endswith("cross: broken off") for text in shown)


def test_a_run_that_was_ended_early_is_held_and_the_caption_says_so(tmp_path):
    rows = [*run("a", 0, [(0, 0.1), (9, 0.9)]), *run("a", 1, [(0, 0.1), (90, 0.9)])]
    shown, _ = drawn(tmp_path, rows, ends=Ends(early=frozenset({("a", 0)})))
    assert any(text.endswith("; thin: some seeds have ended and are held") for text in shown)
    assert not any("cross" in text for text in shown)


def bands(svg):
    return svg.count('id="FillBetweenPolyCollection')


def test_a_band_only_where_there_are_several_seeds(tmp_path):
    assert bands(drawn(tmp_path, rising(4, 3), x_axis="rounds")[1]) == 4
    assert bands(drawn(tmp_path, rising(4, 1), x_axis="seconds")[1]) == 0


@pytest.mark.parametrize(
    ("rounds", "x_axis", "unit"),
    [
        (5, "bytes", "(bytes)"),
        (2_000_000, "bytes", "(MB)"),
        (10**9, "bytes", "(GB)"),
        (100, "seconds", "(seconds)"),
        (2000, "seconds", "(minutes)"),
        (10**5, "seconds", "(hours)"),
        (5, "wall", "wall-clock time (seconds)"),
    ],
)
def test_the_x_label_carries_a_unit_that_suits_the_size(tmp_path, rounds, x_axis, unit):
    shown, _ = drawn(tmp_path, run("a", 0, [(0, 0.1), (rounds, 0.9)]), x_axis=x_axis)
    assert any(text.endswith(unit) for text in shown)


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
    "diverging": [*run("a", 0, [(i, 10.0**i) for i in range(300)], "loss"), *run("b", 0, [(0, 1.0), (9, 0.1)], "loss")],
    "many": [r for i in range(45) for r in run(f"m{i}", 0, [(0, 0.1), (9, 0.9)])],
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("targets", [None, [], [0.9, Target(column="upper_loss", at_most=1e-3)]])
def test_odd_histories_draw_without_a_warning(tmp_path, monkeypatch, name, targets):
    """In every format for the usual targets; for others, which change lines and limits but no letter, in one."""
    if targets is not None:
        monkeypatch.setattr(canvas, "_METADATA", {"svg": canvas._METADATA["svg"]})
    crossed = frozenset((r["algorithm"], 0) for r in EDGES[name])
    for x_axis, log_x in (("rounds", False), ("bytes", True)):
        paths = draw(
            *(EDGES[name], tmp_path),
            title="An $odd_title",
            targets=targets,
            x_axis=x_axis,
            log_x=log_x,
            ends=Ends(crossed) if log_x else WHOLE,
        )
        assert all(path.stat().st_size > 1000 for path in paths)
        [svg] = [path for path in paths if path.suffix == ".svg"]
        assert "An $odd_title" in texts(svg)
    names = {r["algorithm"] for r in EDGES[name]}
    if name in ("strange names", "extremes", "percent", "many"):
        [drawn] = tmp_path.glob("rounds_vs_*.svg")
        assert names <= set(texts(drawn))


def test_a_problem_without_accuracy_shows_its_upper_loss_in_powers_of_ten_under_its_name(tmp_path):
    paths = draw(EDGES["positive loss"], tmp_path, title="x")
    assert [path.name for path in paths] == [f"rounds_vs_upper_loss.{kind}" for kind in ("png", "svg", "pdf")]
    assert "upper loss" in texts(paths[1])
    assert any(re.fullmatch("10[−-]6", text.replace(" ", "")) for text in texts(paths[1]))


def test_any_column_is_drawn_and_the_error_on_decades(tmp_path):
    rows = [row("a", 0, i, accuracy=1 - 10.0**-i, metric_gap=2.0 + i) for i in range(1, 6)]
    _, gap, _ = draw(rows, tmp_path, title="x", column="metric_gap")
    _, error, _ = draw(rows, tmp_path, title="x", column="error", x_axis="bytes")
    assert (gap.name, error.name) == ("rounds_vs_metric_gap.svg", "bytes_vs_error.svg")
    assert "gap" in texts(gap)
    assert {"error (1 - test accuracy)"} <= set(texts(error))
    assert any(re.fullmatch("10[−-]4", text.replace(" ", "")) for text in texts(error))


def test_only_targets_of_the_column_are_marked(tmp_path):
    rows = [row("a", 0, i, accuracy=0.1 * i, metric_gap=0.53 - 0.04 * i) for i in range(10)]
    targets = [0.77, Target(column="metric_gap", at_most=0.33)]
    assert "0.77" in drawn(tmp_path, rows, targets=targets)[0]
    assert "0.33" not in drawn(tmp_path, rows, targets=targets)[0]
    shown, _ = drawn(tmp_path, rows, targets=targets, column="metric_gap")
    assert "0.33" in shown
    assert "0.77" not in shown


def test_what_cannot_be_drawn_is_refused(tmp_path):
    rows = run("a", 0, [(0, 1.0), (1, -1.0)], "loss")
    with pytest.raises(BadInput, match="x_axis: got 'byte'; allowed: bytes, epsilon, gradients, rounds, seconds, wall"):
        draw([], tmp_path, title="x", x_axis="byte")
    with pytest.raises(BadInput, match=r"column: got 'upper_los'; allowed: .*\(did you mean 'upper_loss'\?\)"):
        draw(rows, tmp_path, title="x", column="upper_los")
    with pytest.raises(BadInput, match="column: got 'error'"):
        draw(rows, tmp_path, title="x", column="error")
    with pytest.raises(BadInput, match="log_y: got 'upper_loss'; allowed: a column without values below zero"):
        draw(rows, tmp_path, title="x", log_y=True, column="upper_loss")
    assert list(tmp_path.iterdir()) == []


# ---- the range of the axes


def limits(rows, column, *, log=None, marks=(), log_x=False):
    lines = curves(rows, "rounds", column)
    _, axes = framed("x", "", 1)
    scale_x(axes, lines, 1.0, "rounds", log_x)
    scale_y(axes, lines, column, log, marks)
    return axes


def test_the_rush_at_the_start_does_not_set_the_range():
    """From round 15 of 100 on the curve runs from 0.9 to 0.98; a twentieth of 0.08 stands above and below."""
    axes = limits(run("a", 0, [(0, 0.1), (10, 0.8), (15, 0.9), (100, 0.98)]), "test_accuracy")
    assert axes.get_ylim() == pytest.approx((0.896, 0.984))
    short = run("b", 0, [(0, 0.1), (4, 0.91), (5, 0.92)])
    rows = [*run("a", 0, [(0, 0.1), (10, 0.8), (15, 0.9), (100, 0.98)]), *short]
    assert limits(rows, "test_accuracy").get_ylim() == pytest.approx((0.896, 0.984))
    assert limits(run("a", 0, [(0, 0.1), (100, 0.98)]), "test_accuracy", marks=[0.5]).get_ylim()[0] < 0.5


def test_a_target_that_was_asked_for_is_within_the_range_also_where_no_run_came_near():
    low, high = limits(run("a", 0, [(0, 0.5), (100, 0.6)]), "test_accuracy", marks=[0.95]).get_ylim()
    assert low <= 0.6
    assert high >= 0.95


@pytest.mark.parametrize(
    ("values", "column", "log", "scale"),
    [
        ([1.0, 0.2], "loss", None, "linear"),
        ([1.0, 0.05], "loss", None, "log"),
        ([1.0, 0.05], "loss", False, "linear"),
        ([1.0, 0.9], "loss", True, "log"),
        ([1.0, 0.01, 0.0], "loss", None, "symlog"),
        ([1.0, -2.0], "loss", None, "linear"),
        ([0.01, 0.9], "accuracy", None, "linear"),
    ],
)
def test_the_scale_follows_the_values_unless_it_is_asked_for(values, column, log, scale):
    rows = run("a", 0, list(enumerate(values)), column)
    axes = limits(rows, {"loss": "upper_loss", "accuracy": "test_accuracy"}[column], log=log)
    assert axes.get_yscale() == scale


def test_what_diverges_does_not_press_the_others_together():
    rows = [*run("a", 0, [(0, 5.0), (9, 1e30)], "loss"), *run("b", 0, [(0, 2.0), (9, 0.01)], "loss")]
    low, high = limits(rows, "upper_loss").get_ylim()
    assert low < 0.01
    assert 50.0 < high < 100.0


def test_a_logarithmic_x_begins_where_something_was_spent():
    axes = limits(run("a", 0, [(0, 0.1), (4, 0.5), (400, 0.9)]), "test_accuracy", log_x=True)
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] == 4.0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([0.2, 0.9], [0.2, 0.9]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.5, 0.55, 0.7], [0.475, 0.575, 0.7]),  # the two meet in the middle of what they want
        ([0.0, 0.0], [0.0, 0.1]),
        ([0.95, 1.0, 1.0], [0.8, 0.9, 1.0]),
        ([0.5] * 21, [0.05 * i for i in range(21)]),
    ],
)
def test_names_lie_apart_and_near_to_their_lines(wanted, expected):
    gap = 0.05 if len(wanted) > 10 else 0.1
    assert spaced(wanted, gap) == pytest.approx(expected)
