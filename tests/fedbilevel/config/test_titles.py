# The title of a config follows what is overridden, since it may describe what was there before.

from __future__ import annotations

import pytest

from fedbilevel.config.tables import read, write

BEFORE = "digits, Dirichlet(0.3)"
TEXT = f"""
title = "{BEFORE}"
[run]
rounds = 4
[problem]
name = "hyper_representation"
hidden = [4]
[data]
alpha = 0.3
[algorithms.aggitd]
"""


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        ([], BEFORE),
        (["data.alpha=0.1"], f"{BEFORE}; data.alpha = 0.1"),
        (["data.alpha=0.3"], BEFORE),  # as it was
        (["run.rounds=9", "run.seeds=[1]", "engine.workers=2"], BEFORE),
        (["data.alpha=0.1", "data.alpha=0.2"], f"{BEFORE}; data.alpha = 0.2"),
        (["data.alpha=0.1", "problem.hidden=[8,\n 4]"], f"{BEFORE}; data.alpha = 0.1; problem.hidden = [8, 4]"),
        (['data."alpha" = 0.1', "options.lower_rounds=3"], f"{BEFORE}; data.alpha = 0.1; options.lower_rounds = 3"),
        (["title=Mine", "data.alpha=0.1"], "Mine"),
    ],
)
def test_overrides_stand_behind_the_title(tmp_path, overrides, title):
    (tmp_path / "config.toml").write_text(TEXT)
    config = read(tmp_path / "config.toml", overrides)
    assert config.title == title
    (tmp_path / "resolved.toml").write_text(write(config))
    assert read(tmp_path / "resolved.toml") == config


def test_a_config_without_a_title_has_one_to_begin_with(tmp_path):
    (tmp_path / "config.toml").write_text(TEXT.replace(f'title = "{BEFORE}"', ""))
    assert read(tmp_path / "config.toml", ["data.alpha=0.1"]).title == "fedbilevel; data.alpha = 0.1"
