# Conditions that cannot be: one line each, before anything is written; and what is said of those that can.

from __future__ import annotations

import warnings

import pytest

from experiments.cli import main
from fedbilevel import simulate
from fedbilevel.problems import Quadratic
from tests.problem_table import quadratic
from tests.processes.console import config, refused, rows

COLUMNS = {"epsilon", "metric_lost", "metric_repeated", "metric_dropped"}

FIVE = """
[run]
iterations = 2
dtype = "float64"
[problem]
name = "quadratic"
clients = 5
[options]
lower_step = 0.2
lower_rounds = 1
[algorithms.fednest]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def overrides(*told):
    return [word for each in told for word in ("--set", each)]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        # a rule and its f
        (
            ['aggregation.rule="krum"', "aggregation.byzantine=2"],
            "aggregation.byzantine: got 2; allowed: at most 1: krum of 5 answers",
        ),
        (
            ['aggregation.rule="median"', "aggregation.byzantine=3"],
            "aggregation.byzantine: got 3; allowed: at most 2: ",
        ),
        (
            ['aggregation.rule="median"', "aggregation.byzantine=2", "run.clients_per_round=4"],
            "aggregation.byzantine: got 2; allowed: at most 1: median of 4 answers",
        ),
        (
            ['aggregation.rule="median"', "aggregation.byzantine=2", 'aggregation.before="bucketing"'],
            "aggregation.byzantine: got 2; allowed: at most 1: median after bucketing of 5 answers",
        ),
        (["aggregation.byzantine=1"], 'aggregation.byzantine: got 1; allowed: 0 with rule = "mean"'),
        (['aggregation.rule="krum"', "run.clients_per_round=2"], "aggregation.byzantine: got 0; allowed: "),
        (['aggregation.rule="medean"'], "aggregation.rule: got 'medean'; allowed: "),
        (['aggregation.rule="centred_clipping"', "aggregation.radius=0"], "aggregation.radius: got 0; allowed: "),
        # attackers
        (['systems.byzantine={share=1.0, attack="nan"}'], "systems.byzantine.share: got 1.0; allowed: "),
        (
            ['systems.byzantine={share=0.95, attack="nan"}'],
            "systems.byzantine.share: got 0.95; allowed: a share by which one of the 5",
        ),
        (
            ['systems.byzantine={share=[0.0, 0.95], attack="nan"}'],
            "systems.byzantine.share: got [0.0, 0.95]; allowed: ",
        ),
        (['systems.byzantine={share=0.2, attack="flip"}'], "systems.byzantine.attack: got 'flip'; allowed: "),
        (
            ['systems.byzantine={share=0.2, attack="label_flip"}'],
            "systems.byzantine.attack: got 'label_flip'; allowed: a problem whose examples have labels",
        ),
        # wires
        (['channel.uplink="top_k"', "channel.keep=0"], "channel.keep: got 0; allowed: "),
        (['channel.uplink="random_k"', "channel.keep=1.5"], "channel.keep: got 1.5; allowed: "),
        (['channel.uplink="quantise"', "channel.bits=1"], "channel.bits: got 1; allowed: "),
        (['channel.uplink="zip"'], "channel.uplink: got 'zip'; allowed: "),
        (['channel.uplink="float16"', "channel.keep=3"], "channel: got "),
        # privacy
        (["privacy={clip=0.0, noise_multiplier=1.0}"], "privacy.clip: got 0.0; allowed: "),
        (["privacy={clip=1.0}"], "privacy.noise_multiplier: got nothing; allowed: "),
        (["privacy={clip=1.0, noise_multiplier=1.0, delta=0.0}"], "privacy.delta: got 0.0; allowed: "),
        (
            ["privacy={clip=1.0, noise_multiplier=1.0}", 'aggregation.rule="median"'],
            "aggregation.rule: got 'median'; allowed: mean with a table [privacy]",
        ),
        (
            ["privacy={clip=1.0, noise_multiplier=1.0}", 'aggregation.before="nnm"'],
            "aggregation.rule: got 'mean after nnm'; allowed: mean with a table [privacy]",
        ),
        (
            ["privacy={clip=1.0, noise_multiplier=1.0, adaptive={count_noise=0.5}}"],
            "privacy.adaptive.count_noise: got 0.5; allowed: above half the noise_multiplier, 0.5",
        ),
        # who is there, and in time
        (
            ["systems.deadline_seconds=0.05"],
            "systems.deadline_seconds: got 0.05; allowed: at least 0.1, the two latencies",
        ),
        (["systems.deadline_seconds=0"], "systems.deadline_seconds: got 0; allowed: "),
        (["systems.dropout=1.0"], "systems.dropout: got 1.0; allowed: "),
        (['systems.sampling="poisson"'], "systems.sampling: got 'poisson'; allowed: fixed, or run.clients_per_round"),
        (["systems.over_selection=2"], "systems.over_selection: got 2; allowed: 0, or a fixed number"),
        (
            ["systems.over_selection=3", "run.clients_per_round=3"],
            "systems.over_selection: got 3; allowed: at most 2: ",
        ),
        (
            ["systems.over_selection=1", "run.clients_per_round=3", 'systems.sampling="poisson"'],
            "systems.over_selection: got 1; allowed: 0, or a fixed number",
        ),
        (
            ["systems.availability=0.01", 'systems.availability_pattern="day"', "systems.availability_period=2"],
            "systems.availability: got 0.01; allowed: a share of 2 iterations by which one of 5 clients is there",
        ),
        (
            ["systems.availability=0.01", 'systems.availability_pattern="day"', "systems.availability_period=1000000"],
            "systems.availability: got 0.01; allowed: a share of 1000000 iterations",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(capsys, told, says):
    line = refused(capsys, "run", config(FIVE), "--out", "a", *overrides(*told))
    assert line.startswith(f"fedbilevel: {says}"), line


MEDIAN = {"rule": "median"}
NOISE = {"clip": 1.0, "noise_multiplier": 2.0}
VOTES = "every client one vote: the weights p_i are not used"
SOME = {"clients_per_round": 3, "weighting": "unbiased"}
REMARKS = [
    ({"aggregation": MEDIAN}, [f"the rule median gives {VOTES}"]),
    ({"privacy": NOISE}, [f"privacy gives {VOTES}"]),
    (
        {"aggregation": MEDIAN, **SOME},
        [f"the rule median gives {VOTES}", "run.weighting = unbiased changes nothing"],
    ),
    (
        {"aggregation": MEDIAN, "systems": {"byzantine": {"share": 0.4, "attack": "ipm"}}},
        ["2 clients attack, and the rule is to withstand 0 (aggregation.byzantine)"],
    ),
    (
        {"systems": {"over_selection": 1}, **SOME},
        ["who answers in time is no fair sample: unbiased weights are unbiased for the fast clients alone"],
    ),
]


@pytest.mark.parametrize(("told", "says"), REMARKS)
def test_what_a_condition_does_to_the_weights_is_said_and_not_refused(told, says):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = simulate(quadratic(), "fednest", iterations=1, lower_rounds=1, evaluate_every=10**9, **told)
    assert len(result.history) == 2
    said = [str(each.message) for each in caught]
    assert all(any(line in text for text in said) for line in says), said


def test_clients_of_equal_weight_have_one_vote_each_anyway():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulate(quadratic("uniform"), "fednest", iterations=1, lower_rounds=1, aggregation=MEDIAN)
    assert not [each for each in caught if "one vote" in str(each.message)]


def columns(**told):
    """The columns of conditions in a short run, and its last row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = simulate(quadratic(), "fednest", iterations=2, lower_rounds=1, evaluate_every=1, **told).history
    return {name for name in history[-1] if name in COLUMNS}, history


def test_only_runs_that_have_a_condition_have_its_columns():
    lying = {"byzantine": {"share": 0.2, "attack": "nan"}}
    assert columns()[0] == set()
    assert columns(channel={"uplink": "float16"})[0] == set()
    assert columns(systems={"dropout": 0.1})[0] == {"metric_lost", "metric_repeated"}
    both = {"systems": {"dropout": 0.3, **lying}, "aggregation": {"rule": "median", "byzantine": 1}}
    found, history = columns(**both)
    assert found == {"metric_lost", "metric_repeated", "metric_dropped"}
    assert history[0]["metric_lost"] == history[0]["metric_dropped"] == 0
    assert history[-1]["metric_lost"] > 0
    assert history[-1]["metric_dropped"] > 0
    found, history = columns(privacy=NOISE)
    assert found == {"epsilon"}
    assert 0 == history[0]["epsilon"] < history[1]["epsilon"] < history[-1]["epsilon"]


def test_the_tables_of_a_config_reach_its_runs(capsys):
    told = ["systems.dropout=0.3", 'systems.byzantine={share=0.2, attack="nan"}', 'channel.uplink="float16"']
    told += ['aggregation={rule="median", byzantine=1}', "run.evaluate_every=100"]
    assert main(["run", config(FIVE), "--out", "a", *overrides(*told)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"fednest: the rule median gives {VOTES}" in said
    assert "answers that are not finite were dropped, 1 of " in said
    last = rows("a")[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        here = simulate(
            Quadratic(clients=5),
            "fednest",
            iterations=2,
            dtype="float64",
            lower_step=0.2,
            lower_rounds=1,
            evaluate_every=100,
            systems={"dropout": 0.3, "byzantine": {"share": 0.2, "attack": "nan"}},
            channel={"uplink": "float16"},
            aggregation={"rule": "median", "byzantine": 1},
        ).history[-1]
    assert last["metric_lost"] > 0
    for name in ("metric_lost", "metric_repeated", "metric_dropped", "uplink_bytes", "downlink_bytes", "round"):
        assert last[name] == here[name], name


def test_a_deadline_that_only_an_operation_shows_nobody_to_meet_ends_in_a_line(capsys):
    told = overrides("systems.deadline_seconds=0.1001")
    assert main(["run", config(FIVE), "--out", "a", *told]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("fedbilevel: systems.deadline_seconds: got 0.1001; allowed: at least 0.1001")
    assert line.endswith(": the fastest client takes as long for operation lower_gradient\n")
