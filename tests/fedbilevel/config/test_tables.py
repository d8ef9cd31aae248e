"""Configs: what is refused and in which words, overrides, and that a resolved config reads back as itself."""

from __future__ import annotations

import math

import pytest

from fedbilevel.config.tables import check, read, write
from fedbilevel.errors import BadInput
from server.kit.algorithm import algorithms
from server.running.plan import plan, resolved

QUADRATIC = """
[run]
iterations = 3
[problem]
name = "quadratic"
clients = 4
[options]
lower_step = 0.2
[algorithms.aggitd]
[algorithms.mine]
algorithm = "fednest"
local_steps = { epochs = 2 }
"""


def tables(path, value):
    """A good config but for one key; the value `...` leaves it out."""
    config = {"run": {"iterations": 3}, "problem": {"name": "quadratic"}, "algorithms": {"aggitd": {}}}
    *above, last = path.split(".")
    table = config
    for part in above:
        table = table.setdefault(part, {})
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return config


def file(tmp_path, text=QUADRATIC):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            "rnu",
            3,
            "rnu: got 3; allowed: at the top only aggregation, algorithms, channel, cross, data, engine, options, "
            "privacy, problem, run, systems, title",
        ),
        ("run", 3, "run: got 3; allowed: a table"),
        ("run", ..., "run: got nothing; allowed: a table (required)"),
        ("run.iteratons", 3, "(did you mean 'iterations'?)"),
        ("run.iterations", "x", "run.iterations: got 'x'; allowed: an integer of at least 1 (outer iterations of"),
        ("run.iterations", True, "run.iterations: got True; allowed: an integer of at least 1"),
        ("run.iterations", 3.0, "run.iterations: got 3.0; allowed: an integer of at least 1"),
        ("run.iterations", ..., "run.iterations: got nothing; allowed: an integer of at least 1; or rounds"),
        ("run.rounds", 5, "run.iterations: got 3; allowed: only one of iterations and rounds (= 5)"),
        ("run.seeds", [], "run.seeds: got []; allowed: a list of integers of at least 0 and below 2**62, at least one"),
        ("run.seeds", [0, -1], "run.seeds[1]: got -1; allowed: an integer of at least 0"),
        ("run.seeds", [4, 4], "run.seeds: got [4, 4]; allowed: seeds that differ from each other"),
        ("run.seeds", 2**62, "run.seeds: got 4611686018427387904; allowed: a list of"),
        ("run.batch", "ful", "run.batch: got 'ful'; allowed: \"full\" or an integer of at least 1 (minibatch size"),
        ("run.dtype", "half", 'run.dtype: got \'half\'; allowed: "float32" or "float64"'),
        ("run.targets", [math.nan], "run.targets[0]: got nan; allowed: a number above 0 and at most 1"),
        ("problem.name", ..., "problem.name: got nothing; allowed: a string (a name of `fedbilevel list`"),
        ("systems.network.sped", 1, "systems.network.sped: got 1; allowed: in [systems.network] only downlink_mbps,"),
        ("systems.network.uplink_mbps", math.inf, "got inf; allowed: a finite number above 0"),
        ("systems.availability", 0, "systems.availability: got 0; allowed: a number above 0 and at most 1 (chance"),
        ("data.weights", "sise", 'data.weights: got \'sise\'; allowed: "size" or "uniform" or a list of numbers above'),
        ("data.weights", [1.0, 0], "data.weights[1]: got 0; allowed: a number above 0"),
        ("data.partition", "dirichlt", "data.partition: got 'dirichlt'; allowed: dirichlet, iid,"),
        ("data.alpah", 0.3, "data.alpah: got 0.3; allowed: in [data] only alpha,"),
        ("algorithms", {}, "algorithms: got {}; allowed: at least one table"),
        ("algorithms.aggitd", 3, "algorithms.aggitd: got 3; allowed: a table"),
        ("algorithms.", {}, "algorithms: got ''; allowed: names of 1 to 80 printable characters"),
        ("algorithms." + "x" * 81, {"algorithm": "joint"}, "xx'; allowed: names of 1 to 80 printable characters"),
        ("algorithms.a\tb", {"algorithm": "joint"}, "algorithms: got 'a\\tb'; allowed: names of 1 to 80 printable"),
        ("title", "a\nb", "title: got 'a\\nb'; allowed: one line of printable characters"),
        ("options", [1], "options: got [1]; allowed: a table"),
        ("options.lower_step", "fast", "options.lower_step: got 'fast'; allowed: a number of at least 0 (beta: step"),
        (
            "options.lower_step",
            -1,
            "options.lower_step: got -1; allowed: a number of at least 0 (beta: step size of y)",
        ),
        ("options.lower_stp", 1, "(did you mean 'lower_step'?)"),
        ("options.penalty", 1.0, "options.penalty: got 1.0; allowed: options that an algorithm of this config takes"),
        ("options.local_steps", {"epochs": 0}, "options.local_steps.epochs: got 0; allowed: an integer of at least 1"),
        ("options.local_steps", {"low": 3, "high": 2}, "allowed: low (3) must not exceed high (2)"),
        ("options.local_steps", [1, 0], "options.local_steps[1]: got 0; allowed: an integer of at least 1 (tau"),
        ("options.local_steps", "x", "a list of integers of at least 1, a table { epochs } or a table { low, high }"),
        ("options.estimator", "smaple", 'options.estimator: got \'smaple\'; allowed: "sum" or "sample"'),
        ("algorithms.aggitd.lower_stp", 1, "algorithms.aggitd.lower_stp: got 1; allowed: in [algorithms.aggitd] only"),
        ("algorithms.aggitd.penalty", 1, "algorithms.aggitd.penalty: got 1; allowed: in [algorithms.aggitd] only"),
        ("algorithms.aggitd.lower_step", math.nan, "algorithms.aggitd.lower_step: got nan; allowed: a finite number"),
        ("algorithms.fednset", {}, "(did you mean 'fednest'?)"),
        ("algorithms.mine", {"algorithm": "agitd"}, "algorithms.mine.algorithm: got 'agitd'; allowed: aggitd, "),
        ("algorithms.mine", {"algorithm": 3}, "algorithms.mine.algorithm: got 3; allowed: the name of an algorithm"),
    ],
)
def test_what_is_refused_and_in_which_words(path, value, line):
    with pytest.raises(BadInput) as refused:
        plan(check(tables(path, value)))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_label_may_have_eighty_characters() -> None:
    (_, job) = plan(check(tables("algorithms." + "é" * 80, {"algorithm": "joint"})))
    assert job.label == "é" * 80


def test_dates_are_refused_where_anything_else_goes(tmp_path):
    with pytest.raises(BadInput, match=r"problem\.when: got '2020-01-01'; allowed: a number, a string"):
        read(file(tmp_path, QUADRATIC.replace("clients = 4", "when = 2020-01-01")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[run\niterations = 3", "(at line 1, column 5)"),
        (b"\xff\xfe\x00garbage\x00", "which is text in UTF-8"),
        (b"a = " + b"[" * 20_000, "a TOML file, but:"),
        (b"a = " + b"9" * 5_000, "a TOML file, but:"),
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, said):
    path = tmp_path / "config.toml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read(path)
    assert refused.value.key == "config"
    assert said in str(refused.value)


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = file(tmp_path)
    plain = read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == plain


def test_overrides_are_toml_or_plain_strings_and_make_tables(tmp_path):
    overrides = [
        "run.seeds=[3, 1]",
        "run.dtype=float64",
        'title="a = b"',
        "algorithms.mine.local_steps={low = 1, high = 2}",
        'algorithms."x.y".algorithm=joint',
        "algorithms.aggitd.warm_start=true",
        "options.lower_step = 1e-2",
    ]
    config = read(file(tmp_path), overrides)
    assert (config.run.seeds, config.run.dtype, config.title) == ([3, 1], "float64", "a = b")
    assert config.algorithms["mine"]["local_steps"] == {"low": 1, "high": 2}
    assert config.algorithms["x.y"] == {"algorithm": "joint"}
    assert config.algorithms["aggitd"]["warm_start"] is True
    assert config.options["lower_step"] == 0.01


def test_an_override_of_rounds_replaces_iterations_and_the_other_way_round(tmp_path):
    config = read(file(tmp_path), ["run.rounds=7"])
    assert (config.run.iterations, config.run.rounds) == (None, 7)
    config = read(file(tmp_path, QUADRATIC.replace("iterations", "rounds")), ["run.iterations=7"])
    assert (config.run.iterations, config.run.rounds) == (7, None)
    with pytest.raises(BadInput, match="only one of iterations and rounds"):
        read(file(tmp_path), ["run.rounds=7", "run.iterations=7"])


@pytest.mark.parametrize(
    "override", ["run.rounds", "=3", "run.=3", ".rounds=3", "run..rounds=3", "a b=3", "", "a\nb=1"]
)
def test_overrides_without_key_or_value(tmp_path, override):
    with pytest.raises(BadInput, match=r"--set: got .*; allowed: table\.key=value"):
        read(file(tmp_path), [override])


def test_an_override_below_what_is_no_table(tmp_path):
    with pytest.raises(BadInput, match=r"--set: got 'run\.iterations\.x=3'; .* run\.iterations is no table"):
        read(file(tmp_path), ["run.iterations.x=3"])


def test_the_resolved_config_reads_back_as_itself_and_plans_the_same_jobs(tmp_path):
    config = read(file(tmp_path), ["run.seeds=[0, 5]"])
    whole = resolved(config)
    again = read(file(tmp_path, write(whole)))
    assert again == whole
    assert resolved(again) == whole
    jobs = [(job.label, job.seed, job.entry.name, job.options) for job in plan(config)]
    assert [(job.label, job.seed, job.entry.name, job.options) for job in plan(again)] == jobs
    assert whole.options == {}
    assert whole.algorithms["mine"]["lower_step"] == 0.2  # from [options]
    assert whole.algorithms["mine"]["neumann_terms"] == 5  # a default
    assert whole.problem.parameters["dim_y"] == 8  # a default of the problem


def test_every_algorithm_survives_resolution_with_data_and_partition_written_out(tmp_path):
    text = '[run]\nrounds = 2\n[problem]\nname = "hyper_representation"\n[data]\npartition = "shards"\n'
    text += "".join(f"[algorithms.{name}]\n" for name in algorithms())
    whole = resolved(read(file(tmp_path, text)))
    assert whole.data is not None
    assert (whole.data.name, whole.data.clients, whole.data.parameters) == ("digits", 20, {"shards_per_client": 2})
    again = read(file(tmp_path, write(whole)))
    assert again == whole
    assert [job.options for job in plan(again)] == [job.options for job in plan(whole)]


def test_values_keep_every_bit_and_infinity_on_the_way_through_a_file(tmp_path):
    values = {"a": 0.1 + 0.2, "b": math.inf, "c": [1, 2.5, "x", [True]], "d": {"e": -0.0}, "f": 10**20}
    config = check(tables("problem", {"name": "own.py:make", **values}))
    assert read(file(tmp_path, write(config))).problem.parameters == values


def test_a_problem_file_is_found_beside_its_config_and_named_absolutely(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("")
    path = file(tmp_path, QUADRATIC.replace('"quadratic"', '"own.py:make"').replace("clients = 4", ""))
    monkeypatch.chdir("/")
    assert read(path).problem.name == f"{(tmp_path / 'own.py').resolve()}:make"
