"""`fedbilevel check` where the lower level is local: right methods pass, and a wrong derivative fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from clients.methods.comln import Comln
from experiments.check import run_check
from experiments.check_tasks import TaskOracle
from fedbilevel.errors import BadInput
from fedbilevel.problems.few_shot import FewShot
from fedbilevel.problems.inspection import convert

NETWORK = """
from fedbilevel import derivatives
from fedbilevel.problems.few_shot import FewShot

small = {{"ways": 2, "side": 2, "network": "mlp", "hidden": [3], "activation": "tanh"}}
right = FewShot(**small)


class Changed(FewShot):
    {body}


def problem():
    return Changed(**small)
"""
CONFIG = """
run = {{ iterations = 1 }}
algorithms.maml = {{}}
[problem]
name = "{problem}"
"""


def checked(path: Path) -> tuple[bool, str]:
    text = io.StringIO()
    return run_check(path, [], Console(file=text, width=200)), text.getvalue()


def network(folder: Path, body: str) -> Path:
    """A config of a small network whose class is changed by `body`."""
    (folder / "network.py").write_text(NETWORK.format(body=body))
    config = folder / "config.toml"
    config.write_text(CONFIG.format(problem=f"{folder / 'network.py'}:problem"))
    return config


def test_methods_pass_on_a_network_whose_support_losses_are_not_convex(tmp_path: Path) -> None:
    passed, text = checked(network(tmp_path, "pass"))
    assert passed
    assert "6 tasks, y [23]" in text
    smallest = float(text.splitlines()[1].split()[4])
    assert smallest < 0
    assert text.count(" ok ") >= 5


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (
            """def lower_hvp(self, x, y, v, prepared, weights):
        return 1.001 * derivatives.hvp(right, x, y, v, prepared, weights)""",
            "maml",
        ),
        (
            """def lower_gradient(self, x, y, prepared, weights):
        return 1.001 * derivatives.gradient_y(right, "lower", x, y, prepared, weights)""",
            "reptile",
        ),
        (
            """def upper_gradient_y(self, x, y, prepared, weights):
        return 1.001 * derivatives.gradient_y(right, "upper", x, y, prepared, weights)""",
            "fomaml",
        ),
    ],
    ids=["Hessian", "support gradient", "query gradient"],
)
def test_a_wrong_closed_form_of_a_task_fails(tmp_path: Path, body: str, wrong: str) -> None:
    passed, text = checked(network(tmp_path, body))
    assert not passed
    assert any(line.split()[0] == wrong and "FAILED" in line for line in text.splitlines())


def test_tasks_too_large_for_dense_hessians_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.check_tasks.LARGEST", 22)
    with pytest.raises(BadInput, match="dimension 23'; allowed: at most 22"):
        checked(network(tmp_path, "pass"))


HEAD = """
[run]
iterations = 1
[problem]
name = "few_shot"
ways = 3
shots = 2
side = 4
network = "mlp"
hidden = [4]
activation = "{activation}"
[algorithms.comln]
"""


@pytest.mark.parametrize(("activation", "smooth"), [("tanh", True), ("relu", False)])
def test_the_flow_of_a_head_passes_and_kinks_are_said(tmp_path: Path, activation: str, smooth: bool) -> None:
    (tmp_path / "head.toml").write_text(HEAD.format(activation=activation))
    passed, text = checked(tmp_path / "head.toml")
    assert passed
    [comln] = [line for line in text.splitlines() if line.split()[0] == "comln"]
    assert " ok " in comln
    assert float(comln.split()[1]) < 1e-8
    assert ("which is known to" not in text) == ("lie on kinks" not in text) == smooth


def test_a_wrong_flow_of_a_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = convert(FewShot(ways=2, side=2, network="mlp", hidden=[3], activation="tanh"), torch.float64)
    oracle, real = TaskOracle(problem, 0), Comln.meta_gradient
    [right] = oracle.head("comln")

    def wrong(self: Comln, tasks: Any, x: Any, o: Any) -> Any:
        gradient, told = real(self, tasks, x, o)
        gradient[:, -1] *= 1.001
        return gradient, told

    monkeypatch.setattr(Comln, "meta_gradient", wrong)
    [found] = oracle.head("comln")
    assert right.passed
    assert not found.passed
