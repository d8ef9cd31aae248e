"""The ClientApp: tensors as Flower arrays, and what a node and its process keep."""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    Context,
    Message,
)
from flwr.clientapp import ClientApp

import clients.app
from clients.app import Decoded, array_from_tensor, decoded_of_process, node_of_setup, tensor_from_array
from clients.operations.oracles import lower_gradient
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problems.bilevel.quadratic import Quadratic
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid
from tests.processes.app_runs import PARTIAL, run_app, write_text
from tests.processes.identity import identity_kept


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with identity_kept():
        yield


# --- tensors as Flower arrays ---

TENSORS = {
    "float32": torch.tensor([1.5, -0.0, math.inf, 1e-45]),
    "float64": torch.tensor([[1 / 3, 2.0], [3.0, 5e-324]], dtype=torch.float64),
    "float16": torch.tensor([1.5, 65504.0], dtype=torch.float16),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "uint8": torch.tensor([[[0, 255]]], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "complex64": torch.tensor([1 + 2j]),
    "conjugated": torch.tensor([1 + 2j]).conj(),
    "0-d": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0),
    "empty of three columns": torch.empty((0, 3), dtype=torch.int64),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "expanded": torch.ones(1).expand(4),
    "strided": torch.arange(10)[::3],
    "with a graph": torch.ones(2, requires_grad=True) * 2,
}


@pytest.mark.parametrize("name", TENSORS)
def test_array_holds_what_flower_would_have_written_and_reads_back(name: str) -> None:
    tensor = TENSORS[name]
    reference = Array(tensor.contiguous().numpy(force=True))
    array = array_from_tensor(tensor)
    assert (array.dtype, array.shape, array.stype) == (reference.dtype, reference.shape, reference.stype)
    assert array.data == reference.data
    assert isinstance(array.data, bytes)
    np.testing.assert_array_equal(array.numpy(), tensor.numpy(force=True))
    back = tensor_from_array(array)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)
    assert not back.requires_grad


def test_negative_zero_and_nan_keep_their_bits() -> None:
    tensor = torch.tensor([-0.0, math.nan, -math.nan])
    back = tensor_from_array(array_from_tensor(tensor))
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize("name", TENSORS)
def test_decoded_tensor_is_its_own_and_writable_without_a_warning(name: str) -> None:
    array = array_from_tensor(TENSORS[name])
    data = bytes(bytearray(array.data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = tensor_from_array(array)
        back.zero_()
        back.numpy()[...] = 1
    assert array.data == data
    assert torch.equal(tensor_from_array(array), TENSORS[name])


def test_decoded_tensor_is_aligned_as_torch_aligns() -> None:
    kept = [tensor_from_array(array_from_tensor(torch.ones(length))) for length in (1, 7, 2000, 160_000)]
    assert {tensor.data_ptr() % 64 for tensor in kept} == {0}


def test_encoded_array_does_not_follow_the_tensor() -> None:
    tensor = torch.ones(3)
    array = array_from_tensor(tensor)
    tensor.zero_()
    assert torch.equal(tensor_from_array(array), torch.ones(3))


def test_arrays_framed_by_others_are_read_too() -> None:
    """Fortran order and another header version are legitimate `.npy` data."""
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert torch.equal(tensor_from_array(Array(values)), torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=(2, 0))
    framed = Array("float64", (2, 3), "numpy.ndarray", stream.getvalue())
    assert torch.equal(tensor_from_array(framed), torch.arange(6.0, dtype=torch.float64).reshape(2, 3))


def test_foreign_byte_order_is_read_by_value() -> None:
    array = Array(np.arange(3, dtype=">f4"))
    assert torch.equal(tensor_from_array(array), torch.arange(3.0))


def test_what_cannot_be_converted_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="BFloat16"):
        array_from_tensor(torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="str"):
        tensor_from_array(Array(np.array(["a"])))
    with pytest.raises(TypeError, match="other"):
        tensor_from_array(Array("float32", (1,), "other", b"1234"))


@pytest.mark.parametrize("name", ["float64", "0-d", "empty"])
def test_array_survives_flowers_own_serialisation(name: str) -> None:
    """The same messages travel over Flower's runtimes, which split an array into chunks and join them again."""
    array = array_from_tensor(TENSORS[name])
    inflated = Array.inflate(array.deflate(), children=array.children)
    assert torch.equal(tensor_from_array(inflated), TENSORS[name])


def test_a_node_holds_only_what_may_still_be_asked_for(tmp_path: Path) -> None:
    grid = LocalGrid(clients.app.app, 2)
    config = write_text(tmp_path / "partial.toml", PARTIAL)
    run_app(grid, config=str(config), set="run.clients_per_round=9", out=str(tmp_path / "out"))
    for context in grid._contexts.values():
        assert 1 <= len(context.state.array_records["held"]) <= 8
    assert 1 <= len(decoded_of_process()._tensors) <= 8


def test_an_app_pickled_for_every_message_keeps_what_its_process_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's simulation pickles the ClientApp for every message; a vector is decoded once all the same.

    Its identity is what tells a node that the features it prepared for x are still good.
    """
    from ray import cloudpickle

    pickled: Callable[[object], bytes] = cloudpickle.dumps
    decoded: list[int] = []
    seen: set[int] = set()
    original = Decoded.tensor

    def spy(self: Decoded, name: str, token: int, held: object) -> torch.Tensor:
        tensor = original(self, name, token, held)  # type: ignore[arg-type]  # as it was called
        seen.add(id(tensor))
        decoded.append(token)
        return tensor

    monkeypatch.setattr(Decoded, "tensor", spy)

    def fresh(message: Message, context: Context) -> Message:
        answer: Message = cloudpickle.loads(pickled(clients.app.app))(message, context)
        return answer

    setup = (
        '{"run": "a 0", "problem_table": {"name": "quadratic", "clients": 6}, "data": null, "dtype": "float64",'
        ' "seed": 0, "batch": "full", "gradient_batch": null}'
    )
    problem = Quadratic(clients=6)
    fed = Federation(
        GridExchange(Placement(LocalGrid(cast(ClientApp, fresh), 3), 6), setup), Population.of(problem.clients)
    )
    fed.begin(0)
    x, y = problem.initial(torch.Generator().manual_seed(0))
    nodes = {node_of_setup(setup)}
    for _ in range(4):
        fed.mean(lower_gradient, x=x, y=y)
        nodes.add(node_of_setup(setup))
    assert len(decoded) == 3 * 4 * 2  # nodes, rounds, vectors
    assert len(seen) == 2
    assert len(nodes) == 1
