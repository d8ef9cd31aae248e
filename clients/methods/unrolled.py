"""MAML, first-order MAML and Reptile: gradient descent from the shared initialisation."""

from __future__ import annotations

from torch import Tensor

from clients.methods.method import Adapted, Method, Settings, method
from clients.tasks import TaskBatch


class Descent(Method):
    """Adapts by K gradient steps."""

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """`y_K`."""
        y = tasks.spread(x)
        for _ in range(o["local_steps"]):
            y = y - o["lower_step"] * tasks.gradient("lower", y)
        return Adapted(y)


@method("maml")
class Maml(Descent):
    """Reverse mode through the K steps: a state of memory for each, no graph, and what closed forms keep at each.

    `truncation`: only the last so many steps are differentiated, and only their states kept (None: all).
    """

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`a = grad f(y_K)`; for k = K-1..0: `a -= eta Hess L(y_k) a`."""
        y, eta, K, kept = tasks.spread(x), o["lower_step"], o["local_steps"], o.get("truncation")
        products = []
        for k in range(K):
            here = tasks.expansion(y)
            if kept is None or k >= K - kept:
                products.append(here.product)
            y = y - eta * here.gradient
        a = tasks.gradient("upper", y)
        while products:
            a = a - eta * products.pop()(a)
        return a, ()

    def passes(self, o: Settings) -> tuple[float, float]:
        """K gradients and K products, or as many as are not cut off."""
        steps = o["local_steps"]
        return steps + 2.0 * min(steps, steps if o.get("truncation") is None else o["truncation"]), 1.0


@method("fomaml")
class FirstOrderMaml(Descent):
    """The gradient at the adapted parameters."""

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`grad f(y_K)`."""
        return tasks.gradient("upper", self.adapt(tasks, x, o).y), ()

    def passes(self, o: Settings) -> tuple[float, float]:
        """K gradients."""
        return float(o["local_steps"]), 1.0


@method("reptile")
class Reptile(Descent):
    """The way back from the adapted parameters to the initialisation; the query set is not used."""

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`x - y_K`."""
        return x - self.adapt(tasks, x, o).y, ()

    def passes(self, o: Settings) -> tuple[float, float]:
        """K gradients."""
        return float(o["local_steps"]), 0.0
