"""An algorithm of a user's own, from a file: how it is named, what it may hold, and that two files never meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.methods import methods
from clients.operations import OPERATIONS, oracles
from experiments.cli import main
from fedbilevel import simulate
from fedbilevel.config.tables import Config, check, read, write
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.problems import Quadratic
from server.kit.algorithm import algorithms, find
from server.running.experiment import local
from server.running.plan import plan, resolved
from server.running.run import Result, run_one
from tests.own_algorithms import METHOD, iterates, own
from tests.processes.console import rows

PROBLEM = Quadratic(clients=5, dim_x=3, dim_y=4, examples=(2, 5), seed=1)
CONFIG = """
[run]
iterations = 3
dtype = "float64"
[problem]
name = "quadratic"
clients = 4
[options]
blend = 0.25
[algorithms.{label}]
{table}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def follows(result: Result, blend: float = 0.5, alpha: float = 0.1, factor: float = 1.0, iterations: int = 3) -> None:
    """The iterates are those that numpy finds."""
    start = (part.numpy() for part in PROBLEM.initial(torch.Generator().manual_seed(0)))
    x, y = iterates(PROBLEM, *start, iterations, blend=blend, alpha=alpha, factor=factor)
    np.testing.assert_allclose(result.x.numpy(), x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(result.y.numpy(), y, rtol=1e-12, atol=1e-13)


def config(tmp_path: Path, label: str = "own", table: str = 'algorithm = "own.py:blended"', folder: str = ".") -> Path:
    path = tmp_path / folder / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(CONFIG.format(label=label, table=table))
    return path


def history(config: Config) -> list[dict[str, Any]]:
    """The history of its one job."""
    (job,) = plan(config)
    problem = job.setup().problem()
    return run_one(job.run(), problem, local(job.setup(), problem)).history


# ---- how it is named ----


@pytest.mark.parametrize("name", ["blended", "blended-descent"])
def test_an_algorithm_has_the_name_of_its_factory_and_the_one_it_is_entered_under(tmp_path: Path, name: str) -> None:
    own(tmp_path)
    result = simulate(PROBLEM, f"own.py:{name}", iterations=3, upper_step=0.3, blend=0.25)
    follows(result, blend=0.25, alpha=0.3)
    assert [row["round"] for row in result.history] == [0, 1, 2, 3]
    assert {row["algorithm"] for row in result.history} == {f"own.py:{name}"}
    follows(simulate(PROBLEM, f"{tmp_path}/own.py:{name}", iterations=3))
    entry = find(f"own.py:{name}")
    assert (entry.name, entry.summary, entry.source) == (f"own.py:{name}", "Blended descent.", "a test")


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_its_operation_runs_on_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    own(tmp_path)
    options: dict[str, Any] = {"iterations": 3, "blend": 0.75}
    follows(simulate(PROBLEM, "own.py:blended", workers=workers, **options), blend=0.75)
    drawn: dict[str, Any] = {**options, "gradient_batch": 2, "clients_per_round": 3, "seed": 4}
    one, many = (simulate(PROBLEM, "own.py:blended", workers=each, **drawn) for each in (1, workers))
    np.testing.assert_allclose(many.y, one.y, rtol=1e-12)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(many.y, simulate(PROBLEM, "own.py:blended", **options).y, rtol=1e-3)


def test_simulated_time_counts_what_its_operation_declares(tmp_path: Path) -> None:
    own(tmp_path)
    network = {"latency_ms": 0, "examples_per_second": 1.0, "downlink_mbps": 1e15, "uplink_mbps": 1e15}
    result = simulate(PROBLEM, "own.py:blended", iterations=1, systems={"network": network})
    busiest = max(PROBLEM.clients.lower.sizes + 2 * PROBLEM.clients.upper.sizes)  # gy; fy, and fx of the other one
    assert result.communication["simulated_seconds"] == pytest.approx(busiest, rel=1e-9)


@pytest.mark.parametrize(
    ("label", "table"),
    [
        ("own", 'algorithm = "own.py:blended"'),
        ("own", 'algorithm = "own.py:blended-descent"'),
        ('"own.py:blended"', ""),
        ('"own.py:blended-descent"', "upper_step = 0.1"),
        ("own", 'algorithm = "./sub/../own.py:blended"'),
    ],
)
@pytest.mark.parametrize("where", ["here", "beside the config"])
def test_a_config_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, table: str, where: str) -> None:
    """From the current folder, or from the config's; the same, to the bit, as an algorithm that stands in a table."""
    folder = "." if where == "here" else "there"
    (tmp_path / "there/sub").mkdir(parents=True)
    (tmp_path / "sub").mkdir()
    own(tmp_path / folder)
    found = read(config(tmp_path, label, table, "there"))
    (job,) = plan(found)
    assert job.options.model_dump() == {"upper_step": 0.1, "blend": 0.25}
    made = history(found)
    problem = job.setup().problem()
    expected = simulate(problem, f"{folder}/own.py:blended", iterations=3, blend=0.25).history
    assert [row["upper_loss"] for row in made] == [row["upper_loss"] for row in expected]
    assert len({row["upper_loss"] for row in made}) == 4
    # what is written out is found from anywhere
    (tmp_path / "whole.toml").write_text(write(resolved(found)))
    monkeypatch.chdir("/")
    again = read(tmp_path / "whole.toml")
    assert again.algorithms[label.strip('"')]["algorithm"].startswith(f"{(tmp_path / folder).resolve()}/own.py:")
    assert history(again)[-1]["upper_loss"] == made[-1]["upper_loss"]


def test_the_file_in_the_current_folder_goes_before_the_one_beside_the_config(tmp_path: Path) -> None:
    own(tmp_path / "there")
    here = own(tmp_path)
    found = read(config(tmp_path, folder="there"))
    assert found.algorithms["own"]["algorithm"] == f"{here.resolve()}:blended"


def test_the_command_line_runs_it_and_repeats_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(tmp_path)
    config(tmp_path, '"own.py:blended"', "")
    assert main(["run", "config.toml", "--out", "a", "--set", "options.blend=0.5"]) == 0
    assert capsys.readouterr().err == ""
    assert {row["algorithm"] for row in rows("a")} == {"own.py:blended"}
    assert main(["run", "a/config.toml", "--out", "b"]) == 0
    assert rows("a") == rows("b")


def test_a_label_that_names_no_file_is_refused_under_the_key_that_was_typed(tmp_path: Path) -> None:
    path = config(tmp_path, '"gone.py:blended"', "")
    with pytest.raises(BadInput, match=r"^algorithms\.gone\.py:blended: got 'gone\.py:blended'; .*No such file"):
        plan(read(path))


def test_a_file_may_hand_one_of_ours_on(tmp_path: Path) -> None:
    """By the name of the factory that it imports."""
    (tmp_path / "own.py").write_text("from server.algorithms.implicit.fednest import fednest\n")
    found, ours = (simulate(PROBLEM, name, iterations=2) for name in ("own.py:fednest", "fednest"))
    assert torch.equal(found.x, ours.x)


def test_a_file_travels_to_clients_if_they_run_what_it_holds(tmp_path: Path) -> None:
    file = own(tmp_path)
    (sent,) = find("own.py:blended").client_files
    assert (sent.path, sent.source) == (str(file), file.read_text())
    (tmp_path / "method.py").write_text(METHOD)
    assert [each.path for each in find("method.py:constant").client_files] == [f"{tmp_path}/method.py"]
    before, _, after = file.read_text().partition("@operation")
    imported = "from clients.operations.oracles import lower_gradient\n\n\n@algorithm"
    plain = before + imported + after.partition("@algorithm")[2].replace(", blend=o.blend", "")
    (tmp_path / "plain.py").write_text(plain)
    follows(simulate(PROBLEM, "plain.py:blended", iterations=3), blend=0.0)  # only our own operations
    assert find("plain.py:blended").client_files == find("fednest").client_files == ()


# ---- its options ----


def test_its_options_are_checked_and_are_no_algorithm_s_without_it(tmp_path: Path) -> None:
    own(tmp_path)
    with pytest.raises(BadInput, match=r"^options\.blend: got 2; .*at most 1 \(share of the upper level\)"):
        simulate(PROBLEM, "own.py:blended", blend=2)
    with pytest.raises(BadInput, match=r"^options: got 'blnd'; .*\(did you mean 'blend'\?\)"):
        simulate(PROBLEM, "own.py:blended", blnd=0.5)
    with pytest.raises(BadInput, match=r"^options: got 'blend'"):
        simulate(PROBLEM, "joint", blend=0.5)
    tables: dict[str, Any] = {"run": {"iterations": 1}, "problem": {"name": "quadratic"}, "options": {"blend": 0.5}}
    mine = {"own": {"algorithm": f"{tmp_path}/own.py:blended"}}
    assert [job.label for job in plan(check({**tables, "algorithms": {**mine, "joint": {}}}))] == ["own", "joint"]
    with pytest.raises(BadInput, match=r"^options\.blend: got 0\.5; allowed: in \[options\] only"):
        plan(check({**tables, "algorithms": {"joint": {}}}))
    with pytest.raises(BadInput, match=r"^options\.blend: got 7; "):
        plan(check({**tables, "options": {"blend": 7}, "algorithms": mine}))
    with pytest.raises(BadInput, match=r"^algorithms\.own\.blend: got 7; "):
        plan(check({**tables, "algorithms": {"own": {**mine["own"], "blend": 7}}}))


# ---- files do not meet ----


def test_two_files_with_operations_and_algorithms_of_the_same_names_do_not_meet(tmp_path: Path) -> None:
    own(tmp_path, "one.py")
    own(tmp_path, "two.py", ("FACTOR = 1.0", "FACTOR = 3.0"))
    for name, factor in (("one", 1.0), ("two", 3.0), ("one", 1.0)):
        follows(simulate(PROBLEM, f"{name}.py:blended", iterations=3), factor=factor)
        follows(simulate(PROBLEM, f"{name}.py:blended-descent", iterations=3, workers=2), factor=factor)
    same = own(tmp_path / "sub", "one.py")  # the same text at another place is another file
    follows(simulate(PROBLEM, f"{same}:blended", iterations=3))


def test_an_edited_file_runs_anew_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loud = ("FACTOR = 1.0", "FACTOR = 1.0\nprint('it runs')")
    own(tmp_path, "own.py", loud)
    for _ in range(2):
        follows(simulate(PROBLEM, "own.py:blended", iterations=3))
    assert capsys.readouterr().out == "it runs\n"
    own(tmp_path, "own.py", ("FACTOR = 1.0", "FACTOR = 2.5\nprint('another')"))
    follows(simulate(PROBLEM, "own.py:blended", iterations=3), factor=2.5)
    own(tmp_path, "own.py", loud)
    follows(simulate(PROBLEM, "own.py:blended", iterations=3))
    assert capsys.readouterr().out == "another\n"


def test_what_is_called_as_one_of_ours_does_not_replace_it(tmp_path: Path) -> None:
    """The file's operation is called lower_gradient already; here its algorithm is called fednest, a method maml."""
    header = "FACTOR = 2.0\nfrom clients.methods.method import method\nfrom clients.methods.unrolled import Descent"
    mine = "@method('maml')\nclass Mine(Descent):\n    meta_gradient = passes = None\n\n\nclass Options"
    changes = [('"blended-descent"', '"fednest"'), ("FACTOR = 1.0", header), ("class Options", mine)]
    before = simulate(PROBLEM, "fednest", iterations=2), simulate("quadratic_tasks", "maml", iterations=2)
    kept = {name: OPERATIONS[name] for name in ("lower_gradient", "upper_gradient_x")}
    own(tmp_path, "own.py", *changes)
    result = simulate(PROBLEM, "own.py:fednest", iterations=3)
    follows(result, factor=2.0)
    assert {name: OPERATIONS[name] for name in kept} == kept
    assert OPERATIONS["lower_gradient"] is oracles.lower_gradient
    assert find("fednest").factory.__module__ == "server.algorithms.implicit.fednest"
    assert "blended" not in algorithms()
    assert type(methods()["maml"]).__module__ == "clients.methods.unrolled"
    after = simulate(PROBLEM, "fednest", iterations=2), simulate("quadratic_tasks", "maml", iterations=2)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.x, other.x)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_method_of_local_adaptation_of_its_own(tmp_path: Path, workers: int) -> None:
    (tmp_path / "own.py").write_text(METHOD)
    result = simulate(
        "quadratic_tasks", "own.py:constant", iterations=4, lower_step=0.5, upper_step=0.1, workers=workers
    )
    start = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(result.x, start - 4 * 0.1 * 0.5, rtol=1e-12)
    with pytest.raises(BadInput, match=r"^algorithm: got 'own\.py:constant'; allowed: for a problem with a global"):
        simulate(PROBLEM, "own.py:constant")


# ---- mistakes ----


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gone.py:blended", "", "a file that can be read, and gone.py: No such file or directory"),
        (".py:blended", "", "a file that can be read, and .py: No such file or directory"),
        ("folder.py:blended", "", "a file that can be read, and folder.py: Is a directory"),
        ("own.py:x", "def blended(:", "a file that imports, but it raised SyntaxError"),
        ("own.py:x", "\0", "a file that imports, but it raised"),
        ("own.py:x", "# \xe9", "a file of Python, but it raised SyntaxError|a file of Python, but it raised Unicode"),
        (
            "own.py:x",
            "import nothing_like_it",
            "a file that imports, but it raised ModuleNotFoundError: No module",
        ),
        ("own.py:x", "raise SystemExit(3)", "a file that imports, but it raised SystemExit: 3"),
        ("own.py:x", "1 / 0", "a file that imports, but it raised ZeroDivisionError: division by zero"),
        ("own.py:x", "raise ValueError('a\\nb')", "a file that imports, but it raised ValueError: a b"),
        ("own.py:x", "def x(o): ...", "a file that enters an algorithm, a factory below @algorithm(...), and this one"),
        ("own.py:x", "", "a file that enters an algorithm, a factory below @algorithm(...), and this one enters none"),
        ("own.py:blendd", None, "own.py:blended-descent (did you mean 'own.py:blended-descent'?)"),
        ("own.py:", None, "allowed: own.py:blended-descent"),
        ("own.py:fednest", None, "allowed: own.py:blended-descent"),
        ("own.py:Options", None, "allowed: own.py:blended-descent"),
        ("own.py", None, "path/to/file.py:name"),
        ("aggitdd", None, "(did you mean 'aggitd'?)"),
    ],
)
@pytest.mark.parametrize("through", ["simulate", "config", "label"])
def test_mistakes_are_one_line_with_the_key(
    tmp_path: Path, name: str, text: str | None, said: str, through: str
) -> None:
    (tmp_path / "folder.py").mkdir()
    if text is None:
        own(tmp_path)
    else:
        (tmp_path / "own.py").write_bytes(text.encode("latin-1"))
    key = {"simulate": "algorithm", "config": "algorithms.own.algorithm", "label": f"algorithms.{name}"}[through]
    with pytest.raises(BadInput) as refused:
        named(name, through)
    line = str(refused.value)
    assert refused.value.key == key
    assert "\n" not in line
    assert line.startswith(f"{key}: got '{name}'; allowed: ")
    assert any(part in line for part in said.split("|")), line


def named(name: str, through: str) -> None:
    """Name an algorithm in a call, in a config, or as a label of one."""
    if through == "simulate":
        simulate(PROBLEM, name, iterations=1)
    table: dict[str, Any] = {"own": {"algorithm": name}} if through == "config" else {name: {}}
    plan(check({"run": {"iterations": 1}, "problem": {"name": "quadratic"}, "algorithms": table}))


def test_a_file_that_failed_runs_again_once_it_is_mended(tmp_path: Path) -> None:
    own(tmp_path, "own.py", ("FACTOR = 1.0", "FACTOR = 1.0\nfrom sibling import thing"))
    with pytest.raises(BadInput, match="No module named 'sibling'"):
        simulate(PROBLEM, "own.py:blended")
    for _ in range(2):  # nor is half of it kept
        with pytest.raises(BadInput, match="No module named 'sibling'"):
            simulate(PROBLEM, "own.py:blended")
    own(tmp_path)
    follows(simulate(PROBLEM, "own.py:blended", iterations=3))


def test_an_operation_that_raises_is_named_with_its_client(tmp_path: Path) -> None:
    alone = "    if len(cohort) == 1:\n        raise ValueError('alone')\n    return FACTOR"
    own(tmp_path, "own.py", ("    return FACTOR", alone))
    said = r"^own\.py:blended, seed 0, iteration 0: client 0, operation lower_gradient, round 0: ValueError: alone$"
    with pytest.raises(RunFailed, match=said):
        simulate(PROBLEM, "own.py:blended", iterations=1, workers=5)
