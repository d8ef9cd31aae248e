"""Objects as JSON and arrays: what comes back, and what is refused."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel.data.episodes import Episodes
from fedbilevel.problem import ClientData, Part
from fedbilevel.shares.codec import Arrays, Unknown, decode, encode


def there_and_back(value: Any) -> Any:
    arrays: Arrays = {}
    told = json.loads(json.dumps(encode(value, arrays, "v")))
    return decode(told, arrays)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        0.1,
        "text",
        [1, "a", None],
        (1.5, (2, [3])),
        {"tensor": "abc", "object": {"array": 1}},
        Part("weight", (3, 2), True),
        Episodes(2, 1, 3, 4, 5),
        torch.float64,
    ],
    ids=repr,
)
def test_plain_values_and_objects_come_back(value: Any) -> None:
    found = there_and_back(value)
    assert found == value
    assert type(found) is type(value)


def test_tensors_and_arrays_come_back_as_copies() -> None:
    tensor, array = torch.tensor([[1.0, 2.0]], dtype=torch.float64), np.array([1, 2])
    arrays: Arrays = {}
    told = encode({"t": tensor, "a": array}, arrays, "v")
    found = decode(told, arrays)
    assert torch.equal(found["t"], tensor)
    assert found["t"].dtype == tensor.dtype
    assert found["a"].tolist() == [1, 2]
    found["t"][0, 0] = 7.0
    assert tensor[0, 0] == 1.0


def test_arrays_whose_names_would_be_one_stay_two() -> None:
    found = there_and_back({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}})
    assert float(found["a.b"]) == 1.0
    assert float(found["a"]["b"]) == 0.0


def test_levels_that_are_one_object_stay_one() -> None:
    single = ClientData.single([torch.ones(2, 3), torch.zeros(1, 3)])
    found = there_and_back(single)
    assert found.upper is found.lower
    assert torch.equal(found.lower.values, single.lower.values)
    assert found.weights.tolist() == single.weights.tolist()


@dataclass
class Foreign:
    x: int = 1


@pytest.mark.parametrize("value", [Foreign(), print, {1: 2}, torch.nn.Linear(1, 1), b"bytes", {"a": [Foreign()]}])
def test_what_is_not_ours_is_not_written(value: Any) -> None:
    with pytest.raises(Unknown):
        encode(value, {}, "v")


@pytest.mark.parametrize(
    "told",
    [
        {"object": "os:system", "attributes": {}},
        {"object": "fedbilevel.user_files:os", "attributes": {}},
        {"object": "fedbilevel.user_files:run", "attributes": {}},
        {"object": "fedbilevel.data.episodes:np", "attributes": {}},
        {"object": "fedbilevel.no_such:Thing", "attributes": {}},
        {"named": "fedbilevel.data.episodes:Episodes", "items": [1, 2, 3, 4, 5]},
        {"dtype": "load"},
        {"something": 1},
        [1],
    ],
    ids=str,
)
def test_a_file_cannot_name_code(told: Any) -> None:
    with pytest.raises(Unknown):
        decode(told, {})
