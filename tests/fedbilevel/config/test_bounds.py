"""Requests beyond any sense are refused in one line, and at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from experiments.cli import main
from fedbilevel import BadInput, simulate
from fedbilevel.errors import unknown
from fedbilevel.problems.bilevel.quadratic import Quadratic
from fedbilevel.problems.inspection import inspect_problem

CONFIG = '[run]\niterations = 3\n[problem]\nname = "quadratic"\n[algorithms.aggitd]\n[algorithms.fednest]\n'
MANY = "9" * 400


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(CONFIG)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"run.iterations={MANY}", "at most 1000000000"),
        (f"run.rounds={10**10}", "at most 1000000000"),
        (f"run.batch={10**30}", "at most 1000000000"),
        (f"run.clients_per_round={MANY}", "at most 1000000000"),
        (f"run.seeds=[{MANY}]", "below 2**62"),
        (f"options.local_steps={10**30}", "at most 1000000000"),
        (f"options.local_steps=[1, {10**30}]", "at most 1000000000"),
        (f"options.local_steps={{epochs={10**30}}}", "options.local_steps.epochs"),
        (f"options.local_steps={{low=1, high={10**30}}}", "options.local_steps.high"),
        (f"options.lower_rounds={10**12}", "at most 1000000000"),
        (f"options.neumann_terms={10**12}", "at most 1000000000"),
        (f"options.upper_step={MANY}", "options.upper_step"),
        ("systems.availability=1e-300", "systems.availability: got 1e-300"),
        (f"problem.clients={MANY}", "an integer of less than 2**63"),
        (f"problem.seed={MANY}", "an integer of less than 2**63"),
        (f"problem.examples=[1, {MANY}]", "an integer of less than 2**63"),
        ("problem.weights=" + str([1e308] * 10), "problem.weights"),
        ("problem.weights=" + str([1e-300] + [1e300] * 9), "problem.weights"),
        ("run." + ".".join(["a"] * 3000) + "=1", "at most 20 levels"),
        ("options.local_steps=" + "[" * 400 + "]" * 400, "at most 20 levels"),
        ("title='" + "x" * 100_000 + "'", "one line of printable characters, at most 200 of them"),
    ],
)
def test_beyond_any_sense(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["run", "c.toml", "--out", "out", "--set", override]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
    assert len(told) < 1000
    assert not Path("out").exists()
    assert time.monotonic() - began < 20


def test_a_rare_client_is_waited_for_within_reason() -> None:
    assert simulate("quadratic", "aggitd", iterations=1, systems={"availability": 0.01}).history[-1]["round"] == 12
    with pytest.raises(BadInput, match="one of 10 clients"):
        simulate("quadratic", "aggitd", iterations=1, systems={"availability": 9e-6})


class Strange(Quadratic):
    """A problem that names a measure as it should not."""

    name = "a\nb"
    after = 0

    def evaluate(self, x, y):  # type: ignore[no-untyped-def]  # as a user would write it
        self.after -= 1
        return {self.name if self.after < 0 else "fine": 1.0}


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "", "x" * 81, 3])
def test_names_of_measures_that_no_table_could_hold(name: object) -> None:
    problem = Strange(clients=2)
    problem.name = name  # type: ignore[assignment]  # what a user may get wrong
    with pytest.raises(BadInput, match="names its numbers by 1 to 80 printable characters"):
        inspect_problem(problem, "strange")


def test_a_name_that_turns_strange_later_ends_the_run() -> None:
    problem = Strange(clients=2)
    problem.after = 3
    with pytest.raises(RuntimeError, match="a measure is called"):
        simulate(problem, "aggitd", iterations=9)


def test_long_lists_of_names_are_cut_to_the_nearest() -> None:
    names = [f"name{k:02}" for k in range(40)]
    told = str(unknown("key", "nam07", names))
    assert "name07" in told
    assert "35 others" in told
    assert "(did you mean 'name07'?)" in told
    assert str(unknown("key", "nam07", names[:24])).count("name") == 25
    assert str(unknown("key", "?", names)).endswith("40 others") is False


def test_an_unknown_command_gets_its_hint_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rnu"]) == 2
    assert capsys.readouterr().err.count("Did you mean") == 1


# ---- what options mean ----


def test_two_names_of_one_number_must_agree(capsys: pytest.CaptureFixture[str]) -> None:
    clash = ["--set", "options.lower_rounds=1", "--set", "options.neumann_terms=10"]
    assert main(["run", "c.toml", "--out", "out", *clash]) == 2
    assert capsys.readouterr().err.startswith(
        "fedbilevel: options.neumann_terms: got 10; allowed: 1, as lower_rounds: for aggitd both are one number"
    )
    assert main(["run", "c.toml", "--out", "out", *clash, "--set", "algorithms.aggitd.neumann_terms=4"]) == 0
    # AggITD: N = 4 steps of two rounds each, the hypergradient and the x step; FedNest: 2T + N + 3 with T = 1, N = 10
    last = [line.split(",") for line in Path("out/history.csv").read_text().splitlines() if ",3," in line]
    rounds = {fields[0]: int(fields[3]) for fields in last if fields[2] == "3"}
    assert rounds == {"aggitd": 3 * (2 * 4 + 2), "fednest": 3 * (2 * 1 + 10 + 3)}


def test_options_that_nobody_reads_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "c.toml", "--out", "out", "--set", "options.warm_start=true"]) == 0
    assert "fednest does not read: warm_start" in capsys.readouterr().out
    text = Path("out/config.toml").read_text()
    assert "[algorithms.fednest]\n# not read by fednest: warm_start\n" in text
    assert "# not read by aggitd" not in text
    assert main(["run", "out/config.toml", "--out", "again"]) == 0


def test_a_problem_has_the_seed_of_the_run_unless_it_is_fixed(capsys: pytest.CaptureFixture[str]) -> None:
    def losses(*overrides: str) -> dict[str, set[str]]:
        out = f"o{len(list(Path().glob('o*')))}"
        assert main(["run", "c.toml", "--out", out, *(part for each in overrides for part in ("--set", each))]) == 0
        rows = [line.split(",") for line in Path(out, "history.csv").read_text().splitlines()[1:]]
        return {seed: {row[9] for row in rows if row[1] == seed} for seed in ("0", "4")}

    free = losses("run.seeds=[0, 4]")
    fixed = losses("run.seeds=[0, 4]", "problem.seed=4")
    assert free["4"] == fixed["4"]
    assert free["0"].isdisjoint(free["4"])
    assert fixed["0"].isdisjoint(free["0"])


CONSTANT = """
import torch
from fedbilevel.problems import Quadratic

class Constant(Quadratic):
    def initial(self, generator):
        return torch.ones(5, dtype=torch.float64), torch.ones(8, dtype=torch.float64)

def constant():
    return Constant(clients=3)
"""


def test_seeds_that_make_no_difference_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(CONSTANT)
    Path("c.toml").write_text(CONFIG.replace('"quadratic"', '"own.py:constant"'))
    assert main(["run", "c.toml", "--out", "out", "--set", "run.seeds=[0, 1]"]) == 0
    assert "aggitd: seeds 0, 1 gave the same numbers" in " ".join(capsys.readouterr().out.split())
    assert main(["run", "c.toml", "--out", "b", "--set", "run.seeds=[0, 1]", "--set", "run.clients_per_round=2"]) == 0
    assert "gave the same numbers" not in " ".join(capsys.readouterr().out.split())
