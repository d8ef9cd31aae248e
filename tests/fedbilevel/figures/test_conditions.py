# Figures of runs under several conditions: what is drawn where, against histories made by hand.

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fedbilevel.config.cross import expanded
from fedbilevel.figures import canvas
from fedbilevel.figures.figure import draw
from fedbilevel.figures.grid import Shading, draw_grid, maps
from fedbilevel.figures.panels import panels
from fedbilevel.results.crossing import crossing
from fedbilevel.results.ending import Ends
from tests.fedbilevel.results.rows import run

ATTACKS = [{"attack": "none"}, {"attack": "sign_flip"}, {"attack": "ipm", "strength": 10.0}]
RULES = [{"rule": "mean"}, {"rule": "median"}]
ENDS = {
    "one": {"mean": (0.95, 0.9, 0.1), "median": (0.94, 0.93, 0.92)},
    "two": {"mean": (0.8, 0.7, 0.6), "median": (0.81, 0.71, 0.75)},
}
ATTACKED = ("none", "sign_flip", "ipm strength 10")


def two_factors():
    cross = {"systems": {"byzantine": ATTACKS}, "aggregation": RULES}
    return crossing(expanded({"algorithms": {"one": {}, "two": {}}, "cross": cross})["algorithms"])


def one_factor(algorithms=("one", "two"), dropouts=(0.0, 0.3)):
    cross = {"systems": {"dropout": list(dropouts)}}
    return crossing(expanded({"algorithms": {name: {} for name in algorithms}, "cross": cross})["algorithms"])


def history(column="accuracy", without=()):
    """Three seeds, of which the middle one ends as ENDS says."""
    return [
        each
        for name, rules in ENDS.items()
        for rule, values in rules.items()
        for attack, end in zip(ATTACKED, values, strict=True)
        if (label := f"{name}, {attack}, {rule}") not in without
        for seed, off in enumerate((-0.03, 0.0, 0.02))
        for each in run(label, seed, [(0, 0.05), (20, 0.04), (40, end + off)], column)
    ]


@pytest.fixture
def figures(monkeypatch):
    """What is drawn, before it becomes files."""
    kept = []

    def keep(figure, folder, stem):
        kept.append((stem, figure))
        return []

    for module in ("figure", "grid"):
        monkeypatch.setattr(f"fedbilevel.figures.{module}.save", keep)
    return kept


# ---- maps


def cells(axes):
    """The number, its weight and the shade of every cell, by row and column; no number: None."""
    shades = {(int(patch.get_y()), int(patch.get_x())): patch.get_facecolor()[:3] for patch in axes.patches}
    said = {(int(text.get_position()[1]), int(text.get_position()[0])): text for text in axes.texts}
    return {
        place: (text.get_text() if (text := said.get(place)) else None, text and text.get_fontweight(), shade)
        for place, shade in shades.items()
    }


def test_a_map_has_the_medians_and_the_worst_of_each_row(tmp_path, figures):
    draw_grid(history(), tmp_path, title="x", crossing=two_factors(), column="test_accuracy")
    ((stem, figure),) = figures
    assert stem == "conditions"
    assert [axes.get_label() for axes in figure.axes] == ["one", "two"]
    for axes in figure.axes:
        names = [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()]
        assert names == ["none", "sign flip", "ipm, strength 10", "worst"]
        assert [text.get_text() for text in axes.get_yticklabels()] == ["mean", "median"]
        found = cells(axes)
        for r, values in enumerate(ENDS[axes.get_label()].values()):
            shown = [found[r, c][0] for c in range(4)]
            assert shown == [f"{value:.3f}" for value in (*values, min(values))]
        assert [found[r, 3][1] for r in (0, 1)] == ["normal", "bold"]
        assert {found[r, c][1] for r in (0, 1) for c in range(3)} == {"normal"}
    light, dark = cells(figure.axes[0])[0, 0][2], cells(figure.axes[0])[0, 2][2]
    assert sum(light) > sum(dark)
    assert all(text.get_fontsize() >= 8 for axes in figure.axes for text in axes.texts)


def test_a_loss_is_worst_where_it_is_highest(tmp_path, figures):
    draw_grid(history("loss"), tmp_path, title="x", crossing=two_factors(), column="upper_loss")
    found = cells(figures[0][1].axes[0])
    assert [found[r, 3][0] for r in (0, 1)] == ["0.950", "0.940"]
    assert [found[r, 3][1] for r in (0, 1)] == ["normal", "bold"]
    assert sum(found[0, 2][2]) > sum(found[0, 0][2])


def test_what_broke_off_or_is_not_there_stays_blank_and_has_no_worst_case(tmp_path, figures):
    lost = Ends(frozenset({("one, ipm strength 10, mean", 1)}))
    rows = history(without=["two, sign_flip, median"])
    draw_grid(rows, tmp_path, title="x", crossing=two_factors(), column="test_accuracy", ends=lost)
    one, two = (cells(axes) for axes in figures[0][1].axes)
    blank = (None, None, (1.0, 1.0, 1.0))
    assert one[0, 2] == one[0, 3] == two[1, 1] == two[1, 3] == blank
    assert [one[place][0] for place in ((0, 0), (1, 2), (1, 3))] == ["0.950", "0.920", "0.920"]
    assert one[1, 3][1] == "bold"
    assert two[0, 3][1] == "bold"  # the only one left
    assert any("blank: a run broke off" in text.get_text() for text in figures[0][1].texts)


def test_one_factor_is_one_map_with_a_row_for_each_algorithm():
    rows = [*run("one, dropout 0", 0, [(9, 0.5)]), *run("two, dropout 0.3", 0, [(9, 0.25)])]
    (found,) = maps(rows, one_factor(), "test_accuracy")
    assert (found.rows, found.columns) == (["one", "two"], ["dropout 0", "dropout 0.3", "worst"])
    np.testing.assert_array_equal(found.values, [[0.5, math.nan, math.nan], [math.nan, 0.25, math.nan]])


def test_shades_go_by_the_logarithm_of_the_error():
    shading = Shading.of(np.array([0.2, 0.6, 0.8, math.nan]), "test_accuracy")
    assert [round(shading.share(value), 6) for value in (0.8, 0.6, 0.2)] == [0.0, 0.5, 1.0]
    assert Shading.of(np.array([0.5, 0.5]), "test_accuracy").share(0.5) == 0.0
    losses = Shading.of(np.array([-1.0, 0.0, 1.0]), "upper_loss")
    assert [losses.share(value) for value in (-1.0, 0.0, 1.0)] == [0.0, 0.5, 1.0]


# ---- panels


def lines_of(axes):
    """The curves of a panel by colour: dots, targets and samples apart."""
    return {
        line.get_color(): (line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in axes.lines
        if len(line.get_xdata()) > 2
    }


def test_every_algorithm_has_a_panel_and_every_condition_its_colour(tmp_path, figures):
    rows = [
        each
        for label, ends in {
            "one, dropout 0": (0.9, 0.8),
            "one, dropout 0.3": (0.7, 0.6),
            "two, dropout 0.3": (0.5, 0.3),
        }.items()
        for seed, end in enumerate(ends)
        for each in run(label, seed, [(0, 0.1), (10, 0.2), (20, end)])
    ]
    under = one_factor()
    draw(rows, tmp_path, title="x", crossing=under)
    ((stem, figure),) = figures
    assert stem == "rounds_vs_accuracy"
    one, two = figure.axes
    assert [axes.get_title(loc="left") for axes in (one, two)] == ["one", "two"]
    assert one.get_ylim() == two.get_ylim()
    colours = {name: style.colour for name, style in panels(under).styles.items()}
    (legend,) = figure.legends
    named = {text.get_text(): line.get_color() for text, line in zip(legend.texts, legend.get_lines(), strict=True)}
    assert named == colours == {"dropout 0": colours["dropout 0"], "dropout 0.3": colours["dropout 0.3"]}
    near = pytest.approx
    assert lines_of(one) == {
        colours["dropout 0"]: ([0, 10, 20], near([0.1, 0.2, 0.85])),
        colours["dropout 0.3"]: ([0, 10, 20], near([0.1, 0.2, 0.65])),
    }
    assert lines_of(two) == {colours["dropout 0.3"]: ([0, 10, 20], near([0.1, 0.2, 0.4]))}


def test_of_two_factors_every_algorithm_has_a_block(tmp_path, figures):
    under = two_factors()
    draw(history(), tmp_path, title="x", crossing=under)
    figure = figures[0][1]
    assert [axes.get_label() for axes in figure.axes] == [
        *("one: none", "one: sign flip", "one: ipm, strength 10"),
        *("two: none", "two: sign flip", "two: ipm, strength 10"),
    ]
    colours = {name: style.colour for name, style in panels(under).styles.items()}
    ends = {colour: y[-1] for colour, (_, y) in lines_of(figure.axes[5]).items()}
    assert ends == {colours["mean"]: 0.6, colours["median"]: 0.75}
    assert {text.get_text() for text in figure.texts} >= {"one", "two"}


@pytest.mark.parametrize("count", [1, 3, 4, 7, 12])
def test_panels_and_heads_do_not_touch(tmp_path, figures, count):
    algorithms = [f"method-{k}" for k in range(count)]
    under = one_factor(algorithms, (0.0, 0.1, 0.2, 0.3, 0.4))
    rows = [each for label in under.places for each in run(label, 0, [(0, 0.1), (10, 0.2), (500, 0.9)])]
    draw(rows, tmp_path, title="A title " * 15, crossing=under, targets=[0.5, 0.52])
    figure = figures[0][1]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with canvas.look():
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
        boxes += [text.get_window_extent(renderer) for text in figure.texts]
        boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    touching = [
        (a, b)
        for a in range(len(boxes))
        for b in range(a)
        if boxes[a].shrunk(0.98, 0.98).overlaps(boxes[b].shrunk(0.98, 0.98))
    ]
    assert not touching


def test_more_than_can_be_told_apart_are_drawn_in_one_panel(tmp_path):
    assert panels(one_factor(dropouts=[k / 10 for k in range(8)])) is None
    assert panels(one_factor(algorithms=[f"a{k}" for k in range(25)])) is None
    under = one_factor(dropouts=[k / 10 for k in range(8)])
    rows = [each for label in under.places for each in run(label, 0, [(0, 0.1), (10, 0.2)])]
    _, svg, _ = draw(rows, tmp_path, title="x", crossing=under)
    said = {"".join(node.itertext()) for node in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert set(under.places) <= said


def test_the_same_rows_give_the_same_bytes(tmp_path):
    under = two_factors()
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        draw(history(), tmp_path / name, title="x", crossing=under)
        draw_grid(history(), tmp_path / name, title="x", crossing=under, column="test_accuracy")
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
