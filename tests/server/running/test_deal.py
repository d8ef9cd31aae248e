"""Dealing a problem to its parties: which problems can be taken apart, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedbilevel.config.tables import Config, check
from fedbilevel.errors import BadInput
from fedbilevel.problem import leaves
from fedbilevel.shares.share import Share
from server.running.deal import SERVER, deal, node_file
from server.running.plan import plan
from tests.processes.app_runs import write_text
from tests.processes.identity import identity_kept

SMALL = {"name": "digits", "clients": 4}


def config(name: str, algorithm: str = "aggitd", data: dict[str, Any] | None = None, **problem: Any) -> Config:
    tables = {"run": {"iterations": 5, "dtype": "float64"}, "problem": {"name": name, **problem}}
    return check({**tables, **({} if data is None else {"data": data}), "algorithms": {algorithm: {}}})


PROBLEMS = {
    "hyper_representation": (config("hyper_representation", data=SMALL, hidden=[4]), []),
    "hyper_cleaning": (config("hyper_cleaning", data=SMALL), []),
    "hyper_cleaning, by client": (config("hyper_cleaning", data=SMALL, cleaning="client"), []),
    "loss_tuning": (config("loss_tuning", data=SMALL, largest=30, imbalance=3, upper_examples=10, hidden=[4]), []),
    "unlearning": (
        config("unlearning", data=SMALL, forget_class=0, epochs=1, network="linear"),
        ["forget_accuracy", "retain_accuracy"],
    ),
    "fair_classification": (
        config("fair_classification", "fedgda", data=SMALL),
        ["worst_loss", "worst_accuracy", "accuracy_spread"],
    ),
    "few_shot": (config("few_shot", "maml", clients=4, network="mlp", hidden=[8]), []),
    "sinusoid": (config("sinusoid", "maml", clients=4), []),
    "logistic": (config("regularisation", model="logistic"), []),
    "quadratic": (config("quadratic", clients=4), ["test_loss", "distance", "lower_distance"]),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_taken_apart_and_measured_as_far_as_that_goes(name: str, tmp_path: Path) -> None:
    """That an iteration over the files is that of the whole is for `deal` itself to see."""
    asked, lost = PROBLEMS[name]
    with identity_kept():
        dealt = deal(asked, 2, tmp_path / "parties")
    assert sorted(path.name for path in dealt.folder.iterdir()) == [node_file(0), node_file(1), SERVER]
    assert dealt.lost == lost
    setup = plan(asked)[0].setup()
    whole, server = setup.problem(), Share.read(tmp_path / "parties" / SERVER).problem(setup)
    for level in ("lower", "upper"):
        assert all(len(leaf) == 0 for leaf in leaves(getattr(server.clients, level).values))
    x, y = whole.initial(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(server.initial(torch.Generator().manual_seed(3)), (x, y), strict=True))
    kept = {key: value for key, value in whole.evaluate(x, y).items() if key not in lost}
    assert dict(server.evaluate(x, y)) == pytest.approx(kept)


def test_a_problem_that_is_judged_on_its_clients_own_examples_is_refused(tmp_path: Path) -> None:
    asked = config("personal_representation", "r2d2", data=SMALL, hidden=[4])
    with identity_kept(), pytest.raises(BadInput, match=r"problem\.name: .*personal_representation") as caught:
        deal(asked, 2, tmp_path / "parties")
    assert "own examples" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "parties").exists()


def test_what_cannot_be_used_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    quadratic = config("quadratic", clients=4)
    with pytest.raises(BadInput, match="--nodes: got 5; allowed: an integer from 1 to the number of clients, 4"):
        deal(quadratic, 5, tmp_path / "parties")
    write_text(tmp_path / "mine", "kept")
    for out in (tmp_path / "mine", tmp_path):
        with pytest.raises(BadInput, match=r"--out: .* a new folder or an empty one"):
            deal(quadratic, 2, out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


USERS = """
import torch
from fedbilevel.problem import ClientData


class Mine:
    def __init__(self, kind="plain"):
        parts = [torch.randn(80, 3, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        self.clients = ClientData.single(parts)
        self.clients = ClientData(parts, parts)
        if kind == "twice":
            self.everything = torch.cat(parts)
        if kind == "shared":
            self.centre = torch.cat(parts).mean(0)
        if kind == "code":
            self.function = lambda t: t
        self.kind = kind

    def initial(self, generator):
        return torch.zeros(3), torch.zeros(3)

    def lower(self, x, y, examples):
        centre = self.centre if self.kind == "shared" else 0.0
        return 0.5 * ((y - x - examples - centre) ** 2).sum(-1)

    def upper(self, x, y, examples):
        return 0.5 * ((y - examples) ** 2).sum(-1)

    def evaluate(self, x, y):
        return {}
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("plain", None),
        ("twice", "a problem that holds its clients' examples in `clients` alone, and `everything` has them too"),
        ("shared", "a problem whose start and losses read nothing of its data but a client's own examples"),
        ("code", "a problem of plain values and tensors, and function is of builtins.function"),
    ],
)
def test_a_users_problem_is_dealt_or_refused_in_a_line(kind: str, said: str | None, tmp_path: Path) -> None:
    file = write_text(tmp_path / "mine.py", USERS)
    asked, out = config(f"{file}:Mine", kind=kind), tmp_path / "parties"
    with identity_kept():
        if said is None:
            deal(asked, 2, out)
            return
        with pytest.raises(BadInput) as caught:
            deal(asked, 2, out)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
