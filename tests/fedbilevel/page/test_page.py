# report.html in a real browser: what it shows against numbers read out of history.csv, and what nobody should see.

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import pytest

from fedbilevel.page.write import Contents, write_page
from fedbilevel.report import RunDirectory
from fedbilevel.results import write_history
from fedbilevel.results.ending import Ends
from fedbilevel.results.targets import Target
from tests.fedbilevel.results.rows import row
from tests.processes.browser import browser, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")

READY = "document.documentElement.dataset.ready === 'true'"
# The text of an element with everything in its shadow trees, without styles.
DEEP = """(root) => { let text = ""; const walk = (node) => {
  if (node.nodeType === 3) text += node.textContent + "\\n";
  if (node.localName === "style") return;
  for (const each of [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes]) walk(each);
}; walk(root); return text; }"""

TIP = """function find(node) { if (node.nodeType === 1 && node.classList.contains("bk-Tooltip")) return node;
  for (const each of [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes]) {
    const found = find(each); if (found) return found;
  } return null; }"""
ROWS = """[...document.querySelectorAll('main tbody tr')].filter((row) => row.checkVisibility())
  .map((row) => row.cells[0].textContent)"""
SPAN = "(({x_range}) => [x_range.start, x_range.end])(Bokeh.documents[0].get_model_by_name('chart'))"


@pytest.fixture(scope="module")
def tab():
    with browser() as tab:
        tab.size(1280, 900)
        yield tab


@pytest.fixture
def desktop(tab):
    tab.size(1280, 900)
    return tab


def losses(label, seed, values, **more):
    return [row(label, seed, 10 * i, loss=value, accuracy=None, **more) for i, value in enumerate(values)]


def accuracies(label, seed, values):
    return [row(label, seed, 10 * i, accuracy=value, loss=2.0 - value) for i, value in enumerate(values)]


def made(folder: Path, rows, **contents) -> Path:
    write_page(folder / "report.html", Contents(contents.pop("title", "A run"), rows, **contents))
    return folder / "report.html"


THREE = [
    *accuracies("aggitd", 0, [0.1, 0.3, 0.62345678901234]),
    *accuracies("aggitd", 1, [0.1, 0.4, 0.7]),
    *accuracies("aggitd", 2, [0.1, 0.2, 0.9]),
    *accuracies("fednest", 0, [0.1, 0.5, 0.55]),
    *accuracies("fednest", 1, [0.1, 0.6, 0.65]),
    *accuracies("fednest", 2, [0.1, 0.7, 0.75]),
]


def pick(tab, which, key):
    tab.run(f"(() => {{ const s = document.getElementById('{which}'); s.value = '{key}';"
            "s.dispatchEvent(new Event('change')); })()")  # fmt: skip


def source(tab, name):
    """The columns of what is drawn; NaN is None."""
    part = f"Bokeh.documents[0].get_model_by_name('{name}').data"
    return tab.run(f"Object.fromEntries(Object.entries({part}).map(([k, v]) => [k, [...v].map((e) => "
                   "e && e.length !== undefined && typeof e !== 'string' ? [...e] : e)]))")  # fmt: skip


def pixel(tab, x, y):
    """Where a point of the chart lies in the window."""
    tab.run("document.getElementById('chart').scrollIntoView()")
    return tab.run(
        f"""(() => {{ const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("chart").id);
        const box = view.canvas_view.el.getBoundingClientRect();
        return [box.x + view.frame.x_scale.compute({x}), box.y + view.frame.y_scale.compute({y})]; }})()"""
    )


def hovered(tab, x, y, nothing=False):
    """The lines of the tooltip at a point of the chart, when it comes; nothing: it is not to come."""
    tab.point(1, 1)
    tab.until(f"!({TIP})(document.body)")
    for turn in range(6 if nothing else 100):  # the pointer trembles until the chart has been drawn
        left, top = pixel(tab, x, y)
        tab.point(left - turn % 2, top)
        settle(tab)
        if tab.run(f"Boolean(({TIP})(document.body))"):
            text = tab.run(f"({DEEP})(({TIP})(document.body))")
            return [line.strip() for line in text.splitlines() if line.strip()]
    assert nothing, f"no tooltip at {x}, {y}"
    return []


def inked(tab, colour):
    """How many pixels of the chart have nearly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return tab.run(
        f"""(() => {{ const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("chart").id);
        const drawn = view.canvas_view.primary.canvas, copy = document.createElement("canvas");
        copy.width = drawn.width; copy.height = drawn.height;
        const context = copy.getContext("2d", {{willReadFrequently: true}}); context.drawImage(drawn, 0, 0);
        const data = context.getImageData(0, 0, copy.width, copy.height).data; let count = 0;
        for (let i = 0; i < data.length; i += 4)
          if (data[i + 3] > 200 && {wanted}.every((value, k) => Math.abs(data[i + k] - value) < 12)) count++;
        return count; }})()"""
    )


def settle(tab):
    tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))")


# ---- what is shown


def test_the_pointer_shows_the_number_that_stands_in_history_csv(desktop, tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config('title = "mine"\n')
    directory.write_history(THREE)
    directory.finish(directory.read_history(), "Three", [0.5])
    with open(directory.history_path, newline="") as file:
        lines = {(line["algorithm"], line["seed"], line["round"]): line for line in csv.DictReader(file)}
    desktop.open(directory.page_path, READY)
    assert desktop.errors == []
    assert desktop.requests == [directory.page_path.as_uri()]
    # the median of aggitd's three seeds at round 20 is that of seed 1; of fednest's, too
    told = hovered(desktop, 20, float(lines["aggitd", "1", "20"]["test_accuracy"]))
    assert told[:4] == ["aggitd", "median of 3 seeds", "test accuracy", lines["aggitd", "1", "20"]["test_accuracy"]]
    assert told[4:] == ["low–high", "0.6235–0.9", "rounds", "20"]
    desktop.run("document.getElementById('each').click()")
    line = lines["aggitd", "0", "20"]
    assert hovered(desktop, 20, line["test_accuracy"]) == [
        *("aggitd", "seed 0", "test accuracy", line["test_accuracy"], "rounds", "20"),
    ]
    pick(desktop, "x", "bytes")
    pick(desktop, "y", "upper_loss")
    line = lines["fednest", "2", "10"]
    spent = int(line["uplink_bytes"]) + int(line["downlink_bytes"])
    assert hovered(desktop, spent / 1.0, line["upper_loss"]) == [
        *("fednest", "seed 2", "upper loss", line["upper_loss"], "round", "10", "bytes up + down", str(spent)),
    ]
    assert hovered(desktop, 100, 1.85, nothing=True) == []
    assert desktop.errors == []


def test_the_switches_change_axes_and_data(desktop, tmp_path):
    desktop.open(made(tmp_path, THREE), READY)
    axis = "Bokeh.documents[0].get_model_by_name('{}').axis_label"
    assert desktop.run(axis.format("x")) == "communication rounds"
    assert desktop.run(axis.format("linear")) == "test accuracy"
    assert source(desktop, "lines")["xs"] == [[0, 10, 20]] * 2
    assert source(desktop, "lines")["ys"] == [[0.1, 0.3, 0.7], [0.1, 0.6, 0.65]]
    assert source(desktop, "bands")["ys"][0] == [0.1, 0.2, 0.62345678901234, 0.9, 0.4, 0.1]
    for key, label, expected in (
        ("seconds", "simulated time (seconds)", [0, 5, 10]),
        ("bytes", "communication of the whole federation, uplink + downlink (bytes)", [0, 300, 600]),
    ):
        pick(desktop, "x", key)
        assert desktop.run(axis.format("x")) == label
        assert source(desktop, "lines")["xs"] == [expected] * 2
    pick(desktop, "y", "error")
    assert desktop.run("document.getElementById('log').disabled") is False
    assert source(desktop, "lines")["ys"][1] == pytest.approx([0.9, 0.4, 0.35])
    assert desktop.run("[...document.getElementById('y').options].map((o) => o.value)") == [
        *("upper_loss", "lower_loss", "test_loss", "test_accuracy", "hypergradient_norm", "error"),
    ]
    assert desktop.errors == []


def test_seeds_are_shown_one_by_one_and_methods_leave_the_page_by_a_click(desktop, tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.finish(THREE, "Three", [0.5])
    desktop.open(directory.page_path, READY)
    settle(desktop)
    assert inked(desktop, "#D55E00") > 200
    desktop.run("document.querySelectorAll('#legend button')[1].click()")
    settle(desktop)
    assert inked(desktop, "#D55E00") == 0
    assert inked(desktop, "#0072B2") > 200
    desktop.run("document.getElementById('each').click()")
    assert len(source(desktop, "lines")["xs"]) == 3
    assert source(desktop, "bands")["xs"] == []
    pressed = "document.querySelectorAll('#legend button')[1].getAttribute('aria-pressed')"
    assert desktop.run(pressed) == "false"
    assert "aggitd" in desktop.run(ROWS)
    assert "fednest" not in desktop.run(ROWS)
    desktop.run("document.querySelectorAll('#legend button')[1].click()")
    assert len(source(desktop, "lines")["xs"]) == 6
    desktop.run("document.getElementById('median').click()")
    assert desktop.run(pressed) == "true"
    assert "fednest" in desktop.run(ROWS)
    assert len(source(desktop, "lines")["xs"]) == 2
    assert desktop.errors == []


def test_zoom_and_reset(desktop, tmp_path):
    desktop.open(made(tmp_path, THREE), READY)
    before = desktop.run(SPAN)
    desktop.run("document.getElementById('closer').click()")
    start, end = desktop.run(SPAN)
    assert end - start == pytest.approx((before[1] - before[0]) / 2)
    desktop.run("document.getElementById('reset').click()")
    assert desktop.run(SPAN) == before


def test_the_keyboard_reaches_everything_and_the_chart_has_its_numbers_as_a_table(desktop, tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.finish(THREE, "Three", [0.5])
    desktop.open(directory.page_path, READY)
    reached = []
    for _ in range(16):
        desktop.key("Tab", 9)
        reached.append(desktop.run("document.activeElement.id || document.activeElement.textContent"))
    assert [
        name for name in reached if name in ("y", "x", "log", "median", "closer", "reset", "aggitd", "fednest")
    ] == [
        *("y", "x", "log", "median", "closer", "reset", "aggitd", "fednest"),
    ]
    desktop.run("document.querySelectorAll('#legend button')[0].focus()")
    desktop.key("Enter", 13)
    assert len(source(desktop, "lines")["xs"]) == 1
    numbers = "[...document.querySelectorAll('#numbers tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    assert desktop.run(numbers) == [["fednest", "3", "20", "0.65", "0.55–0.75"]]
    assert "test accuracy against rounds with 1 curves" in desktop.run("document.getElementById('chart').ariaLabel")
    unlabelled = "[...document.querySelectorAll('select, input')].filter((e) => !e.labels.length).length"
    assert desktop.run(unlabelled) == 0
    assert desktop.run("[...document.querySelectorAll('table')].filter((t) => !t.caption).length") == 0
    assert desktop.run("document.querySelectorAll('th:not([scope])').length") == 0
    assert desktop.run("document.documentElement.lang") == "en-GB"


# ---- where it is shown


def test_a_phone_scrolls_down_only_and_paper_has_no_controls(desktop, tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config('name = "' + "long" * 60 + '"\n')
    rows = [each | {"algorithm": f"{each['algorithm']}-{'very-' * 12}long"} for each in THREE]
    directory.finish(rows, "A title of " + "unbroken" * 20, [0.5, 0.6])
    desktop.size(390, 844, phone=True)
    desktop.open(directory.page_path, READY)
    assert desktop.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert desktop.run("document.getElementById('chart').getBoundingClientRect().width") <= 390
    shown = "[...document.querySelectorAll('{}')].filter((e) => e.checkVisibility()).length"
    desktop.ask("Emulation.setEmulatedMedia", media="print")
    assert desktop.run(shown.format(".controls, nav")) == 0
    assert desktop.run(shown.format("main table")) >= 3
    desktop.run("window.dispatchEvent(new Event('beforeprint'))")
    assert desktop.run(shown.format("#chart")) == 0
    assert desktop.run("document.querySelector('#paper canvas').getBoundingClientRect().width") in range(300, 391)
    assert desktop.run(shown.format("#numbers tr")) == 2
    desktop.run("window.dispatchEvent(new Event('afterprint'))")
    assert desktop.run(shown.format("#chart, #paper canvas")) == 1
    assert desktop.run(shown.format("#numbers tr")) == 0
    desktop.ask("Emulation.setEmulatedMedia", media="")
    assert desktop.run(shown.format(".controls, nav")) == 2
    desktop.paper(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert desktop.errors == []


# ---- what is not to happen


def test_nothing_that_a_person_typed_becomes_html_or_script(desktop, tmp_path):
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\"&amp;'"
    rows = [each | {"algorithm": f"aggitd{evil}" if each["algorithm"] == "aggitd" else "fednest"} for each in THREE]
    rows = [each | {f"metric_{evil}": 0.5} for each in rows]
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config(f"# {evil}\n")
    directory.finish(rows, evil, [0.5])
    desktop.open(directory.page_path, READY)
    assert desktop.run("document.title") == desktop.run("document.querySelector('h1').textContent") == evil
    assert desktop.run("document.querySelector('pre').textContent") == f"# {evil}\n"
    assert hovered(desktop, 20, 0.7)[0] == f"aggitd{evil}"
    pick(desktop, "x", "bytes")
    desktop.run("document.getElementById('y').selectedIndex = 5")
    desktop.run("document.getElementById('y').dispatchEvent(new Event('change'))")
    assert hovered(desktop, 0, 0.5)[2] == evil.replace("_", " ")
    assert desktop.run("[window.broken === undefined, document.querySelectorAll('img').length]") == [True, 0]
    assert desktop.errors == []
    assert desktop.requests == [directory.page_path.as_uri()]


def test_values_that_are_no_numbers_and_zeros_on_a_logarithmic_axis_are_left_out(desktop, tmp_path):
    nan, inf = math.nan, math.inf
    rows = [
        *losses("zero", 0, [1.0, 0.1, 0.0, 0.001]),
        *losses("zero", 1, [1.0, 0.3, 0.0, 0.003]),
        *losses("wild", 0, [1.0, nan, inf, -inf, 1e300]),
        *losses("none", 0, [nan, nan]),
        *losses("empty", 0, [None, None]),
        *losses("lone", 0, [0.5]),
    ]
    desktop.open(made(tmp_path, rows, ends=Ends(frozenset({("wild", 0), ("lone", 0), ("away", 3)}))), READY)
    assert desktop.run("document.getElementById('y').value") == "upper_loss"
    assert desktop.run("document.getElementById('log').checked") is True
    assert source(desktop, "lines")["xs"] == [[0, 10, 30], [0], [0]]
    assert source(desktop, "lines")["ys"] == [pytest.approx([1.0, 0.2, 0.002]), [1.0], [0.5]]
    assert hovered(desktop, 0, 0.5)[:4] == ["lone", "seed 0", "upper loss", "0.5"]
    assert source(desktop, "crosses")["y"] == [1.0, 0.5]
    desktop.run("document.getElementById('log').click()")
    assert source(desktop, "lines")["ys"][0] == pytest.approx([1.0, 0.2, 0.0, 0.002])
    desktop.run("document.getElementById('each').click()")
    assert source(desktop, "lines")["ys"] == [[1.0, 0.1, 0.0, 0.001], [1.0, 0.3, 0.0, 0.003], [1.0], [0.5]]
    table = "[...document.querySelectorAll('.failed tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    assert desktop.run(table) == [
        ["wild", "0", "5", "40", "broken off"],
        ["lone", "0", "1", "0", "broken off"],
        ["away", "3", "0", "—", "not begun"],
    ]
    assert "4 of 7 runs finished." in desktop.run("document.querySelector('main').textContent")
    assert desktop.errors == []


def test_a_run_that_has_just_begun_has_a_page_too(desktop, tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.finish([], "Begun", [Target(column="upper_loss", at_most=0.1)])
    desktop.open(directory.page_path)
    assert "No evaluations yet." in desktop.run("document.body.textContent")
    assert desktop.errors == []
    assert directory.page_path.stat().st_size < 20_000
    rows = [row("a", 0, 0, loss=None, lower_loss=None, test_loss=None, hypergradient_norm=None)]
    desktop.open(made(tmp_path, rows))
    assert "No evaluations yet." in desktop.run("document.body.textContent")


def test_a_hundred_curves_are_small_and_quick(desktop, tmp_path):
    """Twenty methods on five seeds of 150 evaluations, each on a clock of its own."""
    rows = []
    for m, seed, i in itertools.product(range(20), range(5), range(150)):
        measures = {"accuracy": 1 - 0.9 * math.exp(-i * (m + 1) / 500) - 0.01 * seed, "loss": 2.0 / (1 + i + seed)}
        spent = {"wall_seconds": 0.01 * i * (1 + seed / 7), "simulated_seconds": i * (1 + m / 9)}
        rows.append(row(f"method-{m}", seed, 6 * i, value=1.0 / (2 + i + seed), **measures) | spent)
    path = made(tmp_path, rows, targets=[0.5])
    assert path.stat().st_size < 10e6
    assert desktop.open(path, READY) < 15  # on a machine that does nothing else, a fifth of that
    desktop.run("document.getElementById('each').click()")
    assert len(source(desktop, "lines")["xs"]) == 100
    assert desktop.errors == []


def test_the_same_contents_are_the_same_bytes_and_a_page_that_cannot_be_made_loses_nothing(tmp_path, monkeypatch):
    first = made(tmp_path, THREE).read_bytes()
    assert made(tmp_path, THREE).read_bytes() == first
    directory = RunDirectory.create(tmp_path / "run")
    write_history(directory.history_path, THREE)

    def fails(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("fedbilevel.report.directory.write_page", fails)
    with pytest.warns(RuntimeWarning, match=r"report\.html could not be made: ZeroDivisionError"):
        assert directory.finish(THREE, "Three", [0.5])
    assert directory.summary_path.is_file()
    assert not directory.page_path.exists()
