"""`fedbilevel check`: right estimators pass, a wrong derivative fails, and the rest is said in one line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.checks.estimators import run_check
from fedbilevel.errors import BadInput
from server.kit.algorithm import algorithms

CONFIG = """
run = {{ iterations = 1 }}
algorithms.aggitd = {{}}
[problem]
name = "{problem}"
"""
WRONG = """
from fedbilevel.problems import Quadratic


class Wrong(Quadratic):
    def {method}:
        {body}


def problem():
    return Wrong(clients=3, dim_x=2, dim_y=4)
"""


def checked(path: Path | None) -> tuple[bool, str]:
    text = io.StringIO()
    return run_check(path, [], Console(file=text, width=200)), text.getvalue()


def written(folder: Path, source: str) -> Path:
    (folder / "wrong.py").write_text(source)
    config = folder / "config.toml"
    config.write_text(CONFIG.format(problem=f"{folder / 'wrong.py'}:problem"))
    return config


@pytest.mark.slow
@pytest.mark.beside
def test_every_estimator_passes_on_every_problem() -> None:
    passed, text = checked(None)
    assert passed
    assert text.startswith("quadratic: 10 clients")
    assert "minimax_quadratic: 10 clients" in text
    assert "hyper_representation: 5 clients" in text
    for name in ("aggitd, sum", "aggitd, warm start", "fednest, sum", "fednest-sgd, sum", "lfednest, sum"):
        assert sum(line.strip().startswith(name) for line in text.splitlines()) == 3
    for name, entry in algorithms("global").items():
        lines = [line.split()[0].rstrip(",") for line in text[: text.index("quadratic_tasks:")].splitlines()]
        assert lines.count(name) >= 2 or entry.biased or entry.lower == "any"
    bilevel, minimax = text[: text.index("\nquadratic_tasks:")].split("minimax_quadratic:")
    assert bilevel.count(" ok ") == 36
    assert minimax.count(" ok ") == 18 + 6 + 1
    lines = [line.split()[0].rstrip(",") for line in minimax.splitlines()]
    assert {name for name, entry in algorithms().items() if entry.lower == "minimax"} <= set(lines)
    assert "fednest-minimax" not in bilevel
    assert "FAILED" not in text
    tasks = text[text.index("quadratic_tasks:") :].splitlines()
    for name in algorithms("local"):
        found = [line for line in tasks if line.split()[0].rstrip(",") == name]
        assert found
        assert all(any(said in line for said in (" ok ", "no dense reference", "does not solve")) for line in found)
    for name in ("maml", "maml, truncation 2", "fomaml", "reptile", "memfbo"):
        assert any(line.strip().startswith(name) and " ok " in line for line in tasks)


ALIKE = ("aggitd, sample", "fednest, sample", "fedmbo, sample")
"""Held against the sums of the same terms, which are as wrong."""
ROWS, FIRST_ORDER = ("br-fedbi, momenta",), ("f2sa", "memfbo")
"""Those whose clients differentiate each for itself, without closed forms in x; those without second derivatives."""


@pytest.mark.parametrize(
    ("method", "body", "fine"),
    [
        (
            "lower_hvp(self, x, y, v, prepared, weights)",
            "import torch; return torch.einsum('...n,...nij,...j->...i', weights, prepared['A'], v) * 1.0001",
            ALIKE + FIRST_ORDER,
        ),
        (
            "cross_vjp(self, x, y, v, examples, prepared, weights)",
            "import torch; return torch.einsum('n,nij,i->j', weights, examples['B'], v)",
            (*ALIKE, *ROWS, *FIRST_ORDER, "lfednest, sum"),
        ),
        ("upper_gradient_x(self, x, y, examples, prepared, weights)", "return weights @ examples['d']", ALIKE + ROWS),
    ],
    ids=["hessian off by 1e-4", "cross product with the wrong sign", "direct gradient without a term"],
)
def test_a_wrong_closed_form_fails(tmp_path: Path, method: str, body: str, fine: tuple[str, ...]) -> None:
    """Every estimator that reads it, and no other one."""
    passed, text = checked(written(tmp_path, WRONG.format(method=method, body=body)))
    assert not passed
    ok, failed = ([line for line in text.splitlines() if f" {said} " in line] for said in ("ok", "FAILED"))
    assert len(ok) == len(fine)
    assert all(any(line.strip().startswith(name) for line in ok) for name in fine)
    assert len(failed) > len(fine)


def test_a_lower_level_without_a_minimum_is_refused(tmp_path: Path) -> None:
    body = "return -super().lower(x, y, examples)"
    with pytest.raises(BadInput, match="strongly convex"):
        checked(written(tmp_path, WRONG.format(method="lower(self, x, y, examples)", body=body)))
