# Figures: their curves by hand, and drawings that repeat to the byte.

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fedbilevel.errors import BadInput
from fedbilevel.results import draw
from fedbilevel.results.figure import curves
from tests.fedbilevel.results.rows import rising, row, run

ROOT = Path(__file__).resolve().parents[3]


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
