"""Where clients compute: names of devices, and problems brought to one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedbilevel import simulate
from fedbilevel.errors import BadInput
from fedbilevel.machine.device import at_hand, chosen, moved, placed, where
from fedbilevel.problems import Quadratic
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from tests.processes.console import config, refused

CARD = torch.cuda.is_available()
META = torch.device("meta")
CONFIG = """
[run]
iterations = 2
device = "{device}"
[problem]
name = "quadratic"
[algorithms.joint]
"""


def test_auto_takes_the_card_where_there_is_one() -> None:
    assert chosen("auto").type == at_hand("cuda").type == ("cuda" if CARD else "cpu")
    assert chosen("cpu").type == "cpu"


@pytest.mark.skipif(CARD, reason="this machine has a CUDA card")
def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^device: got 'cuda'; allowed: .*no CUDA card"):
        simulate("quadratic", "joint", iterations=1, device="cuda")


@pytest.mark.parametrize("device", ["cuda", "tpu"])
@pytest.mark.skipif(CARD, reason="this machine has a CUDA card")
def test_a_config_says_so_in_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "run", config(CONFIG.format(device=device)), "--out", "out")
    assert said.startswith(f"fedbilevel: run.device: got '{device}'")


def test_every_name_gives_the_same_history() -> None:
    names = ["auto", "cpu", *(["cuda"] if CARD else [])]
    runs = [simulate("quadratic", "aggitd", iterations=5, device=name, dtype="float64") for name in names]
    for run in runs[1:]:
        assert torch.allclose(run.x, runs[0].x, rtol=0, atol=1e-10)
        assert run.x.device.type == "cpu"


@pytest.mark.parametrize("problem", [Quadratic(clients=3), QuadraticTasks(clients=3)])
def test_a_problem_is_brought_to_a_device_once(problem: Quadratic | QuadraticTasks) -> None:
    there = placed(problem, META)
    assert placed(problem, META) is there
    assert placed(there, META) is there
    assert placed(problem, torch.device("cpu")) is problem
    assert (where(problem), where(there)) == ("cpu", "meta")
    assert there.clients.weights is problem.clients.weights
    if isinstance(there, QuadraticTasks):
        assert there._unseen["a"].device == META


def test_integers_keep_their_dtype_and_floats_get_the_one_asked_for() -> None:
    class Own:
        def __init__(self) -> None:
            self.clients = Quadratic(clients=2).clients
            self.parts = [torch.zeros(2, dtype=torch.float64), {"label": torch.arange(2)}]
            self.name = "own"

    other = moved(Own(), torch.float32)  # type: ignore[arg-type]  # no losses are needed here
    assert other.parts[0].dtype == torch.float32  # type: ignore[attr-defined]
    assert other.parts[1]["label"].dtype == torch.int64  # type: ignore[attr-defined]
    assert other.name == "own"  # type: ignore[attr-defined]
