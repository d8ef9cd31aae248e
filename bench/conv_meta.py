"""What MAML's meta-gradient costs on the convolutional network: closed forms, automatic differentiation, a library.

32 tasks as Omniglot's: 5 classes with 1 support image of 28 x 28 each, 4 blocks of 32 filters, 5 inner steps. The
library is higher, whose loop is written as its documentation has it: one task after another (`pip install ".[bench]"`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.timing import ratio
from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel.errors import BadInput
from fedbilevel.problem import Examples
from fedbilevel.problems.networks.classifier import Classifier
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.tasks import Tasks

TASKS, CLASSES, SIDE, FILTERS = 32, 5, 28, 32
STEPS, STEP = 5, 0.4
QUERIES, MANY = 5, 15


class FewShot:
    """The losses of `few_shot` with its network, by closed forms or by automatic differentiation."""

    def __init__(self, *, closed: bool) -> None:
        self.network = Convolutions(1, FILTERS, CLASSES)
        if closed:
            forms = Classifier(self.network)
            self.lower_gradient = self.upper_gradient_y = forms.gradient
            self.lower_hvp, self.lower_expansion = forms.hvp, forms.expansion

    def lower(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(self.network(y, examples["input"]), examples["label"], reduction="none")

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy."""
        return self.lower(x, y, examples)


def _tasks(queries: int, dtype: torch.dtype) -> Tasks:
    """Noise under labels: what a task costs does not depend on what is in its images."""
    draw = torch.Generator().manual_seed(1)

    def part(each: int) -> Examples:
        label = torch.arange(CLASSES).repeat_interleave(each).expand(TASKS, -1)
        return {"input": torch.rand(TASKS, CLASSES * each, SIDE, SIDE, generator=draw).to(dtype), "label": label}

    return Tasks(part(1), part(queries))


def _start(dtype: torch.dtype) -> Tensor:
    return Convolutions(1, FILTERS, CLASSES).initial(torch.Generator().manual_seed(0)).to(dtype)


def ours(queries: int, dtype: torch.dtype, *, closed: bool = True) -> Callable[[], Tensor]:
    """A function that computes the mean meta-gradient of all tasks."""
    problem, x = FewShot(closed=closed), _start(dtype)
    batch = TaskBatch(problem, _tasks(queries, dtype), x)  # type: ignore[arg-type]  # a method reads no more than the losses

    def call() -> Tensor:
        with torch.no_grad():
            settings = {"local_steps": STEPS, "lower_step": STEP}
            return methods()["maml"].meta_gradient(batch, x, settings)[0].mean(0)

    return call


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, h: Tensor) -> Tensor:
        """[n, filters]."""
        return h.mean((2, 3))


def automatic(queries: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The same by automatic differentiation of all tasks at once."""
    return ours(queries, dtype, closed=False)


def module(dtype: torch.dtype) -> nn.Module:
    """The same network at the same start, by torch.nn."""
    parts, layers = Convolutions(1, FILTERS, CLASSES).parts(_start(dtype)), list[nn.Module]()
    for kernel, scale, shift in zip(parts[:-2:3], parts[1:-2:3], parts[2:-2:3], strict=True):
        convolution = nn.Conv2d(len(kernel) // 9, FILTERS, 3, stride=2, padding=1, bias=False)
        convolution.weight.data = kernel.unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1).contiguous()
        norm = nn.BatchNorm2d(FILTERS, track_running_stats=False)
        norm.weight.data, norm.bias.data = scale.clone(), shift.clone()
        layers += [convolution, norm, nn.ReLU()]
    head = nn.Linear(FILTERS, CLASSES)
    head.weight.data, head.bias.data = parts[-2].clone(), parts[-1].clone()
    return nn.Sequential(*layers, Mean(), head)


def library(queries: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The same by higher.

    Raises BadInput where it is not installed.
    """
    try:
        import higher  # type: ignore[import-untyped]  # it has no annotations
    except ImportError:
        raise BadInput("higher", "nothing", 'the library (pip install ".[bench]")') from None
    net, tasks = module(dtype), _tasks(queries, dtype)
    optimiser = torch.optim.SGD(net.parameters(), lr=STEP)
    support, query = ({**part, "input": part["input"].unsqueeze(2)} for part in (tasks.support, tasks.query))

    def call() -> Tensor:
        net.zero_grad()
        for b in range(TASKS):
            with higher.innerloop_ctx(net, optimiser, copy_initial_weights=False) as (inner, steps):
                for _ in range(STEPS):
                    steps.step(cross_entropy(inner(support["input"][b]), support["label"][b]))
                (cross_entropy(inner(query["input"][b]), query["label"][b]) / TASKS).backward()
        found = [p.grad for p in net.parameters() if p.grad is not None]
        return torch.cat([(g.permute(2, 3, 1, 0) if g.ndim == 4 else g).flatten() for g in found])

    return call


Way = Callable[[int, torch.dtype], Callable[[], Tensor]]


def _speedup(slow: Way, queries: int, repeats: int = 7) -> float:
    """How much faster closed forms are: medians of runs that alternate, of ways that agree in double precision."""
    expected, found = slow(queries, torch.float64)(), ours(queries, torch.float64)()
    assert float((found - expected).norm() / expected.norm()) < 1e-9
    return ratio(slow(queries, torch.float32), ours(queries, torch.float32), repeats, warm=1)


MEASURES: dict[str, Callable[[], float]] = {
    "few_shot_conv_speedup": lambda: _speedup(automatic, QUERIES),
    "few_shot_conv_speedup_15_queries": lambda: _speedup(automatic, MANY),
    "few_shot_conv_library_speedup": lambda: _speedup(library, QUERIES),
    "few_shot_conv_library_speedup_15_queries": lambda: _speedup(library, MANY),
}
"""How much faster closed forms are than automatic differentiation, and than the library."""
