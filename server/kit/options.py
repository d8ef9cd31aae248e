"""The options of algorithms: one name, one meaning, one check each. The papers' symbols stand in the descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.federation.systems import LocalSteps as LocalStepsSpec
from fedbilevel.strict import MOST, Positive, PositiveInt, Strict

Step = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = PositiveInt
Decay = Annotated[float, Field(ge=0, lt=1)]

UpperStep = Annotated[Step, Field(description="alpha: step size of x")]
LowerStep = Annotated[Step, Field(description="beta: step size of y")]
NeumannStep = Annotated[Step | None, Field(description="lam: step of the Neumann series; default: the lower step")]
LowerRounds = Annotated[Count, Field(description="T: lower-level steps of an outer iteration")]
NeumannTerms = Annotated[Annotated[int, Field(ge=0, le=MOST)], Field(description="N: terms of the Neumann series")]
LocalSteps = Annotated[LocalStepsSpec, Field(description="tau: local steps on y")]
UpperLocalSteps = Annotated[LocalStepsSpec, Field(description="tau of the x step: local steps on x")]
UpperLocalStepsOrServer = Annotated[
    LocalStepsSpec | Literal[0], Field(description="tau of the x step: local steps on x; 0: the server takes it")
]
Estimator = Annotated[
    Literal["sum", "sample"], Field(description="the whole Neumann sum, or one random term (Q or N')")
]
Accounting = Annotated[
    Literal["paper", "merged"],
    Field(description="paper: an SVRG step is 2 rounds and the x step a round; merged: the server steps where it can"),
]
Indices = Annotated[
    list[Annotated[int, Field(ge=0)]] | None, Field(description="Q or N' of each iteration, instead of random draws")
]
WarmStart = Annotated[bool, Field(description="start the linear system from the last iteration's v (ours)")]
Penalty = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="lam: weight of the lower level in the penalty")
]


class Options(Strict):
    """Base of every algorithm's options.

    aliases: pairs of options that are one number of this algorithm, though two of others. automatic: steps that the
    algorithm finds by itself where they are not given, so that nobody has to look for them.
    """

    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()
    automatic: ClassVar[frozenset[str]] = frozenset()

    def hold(self) -> None:
        """Raises BadInput, naming an option below `options`, for values that do not go together."""

    def remarks(self, *, sampled: bool, minibatches: bool) -> list[str]:
        """What a person should know who runs it with sampled clients, or with minibatches."""
        return []

    def hold_local(self) -> None:
        """Raises BadInput for a value that cannot be used where the lower level is local."""

    def hold_blocks(self) -> None:
        """Raises BadInput for an algorithm that cannot be used where each client has a block of x to itself."""

    def kept_by_clients(self, dim_x: int, dim_y: int) -> int:
        """How many numbers every client keeps from one of its rounds to the next, to estimate memory."""
        return 0

    def hold_clients(self, taus: Mapping[str, NDArray[np.int64]]) -> None:
        """Raises BadInput for a value that does not fit the clients, of whom it gets every option of local steps."""


class UpperOptions(Options):
    """What an algorithm takes whose x step the server can make in several ways (see `server/kit/optimisers.py`)."""

    upper_step: UpperStep = 0.1
    upper_optimiser: Annotated[
        Literal["sgd", "momentum", "adam", "adamomentum", "yogi", "spectral"],
        Field(description="how the server steps along the direction of x"),
    ] = "sgd"
    upper_beta1: Annotated[Decay, Field(description="b1: decay of the first moment of upper_optimiser")] = 0.9
    upper_beta2: Annotated[Decay, Field(description="b2: decay of the second moment of upper_optimiser")] = 0.999
    upper_epsilon: Annotated[Positive, Field(description="eps of upper_optimiser")] = 1e-8
    upper_limit: Annotated[
        Positive, Field(description="rho: longest spectral step of a matrix of x, in its spectral norm at the start")
    ] = 0.2
    upper_vectors: Annotated[
        Literal["gradient", "adam"],
        Field(description="what a spectral step makes of x, or a part of it, that is no matrix: see the server's step"),
    ] = "gradient"
    upper_schedule: Annotated[
        Literal["constant", "halving", "cosine", "inverse_sqrt", "inverse"],
        Field(
            description="alpha after t steps, k = upper_period: halved every k, (1 + cos(pi t/k))/2, (1 + t/k)^(-1/2), "
            "1 / (1 + t/k)"
        ),
    ] = "constant"
    upper_period: Annotated[
        Count | None,
        Field(description="k of upper_schedule, in outer iterations; default: of inverse_sqrt 1, of inverse 100"),
    ] = None
    upper_weight_decay: Annotated[Step, Field(description="a step of x also takes alpha times this share off x")] = 0.0

    def hold(self) -> None:
        """Raises BadInput for a schedule without its period, and for a period that nothing reads."""
        super().hold()
        if self.upper_schedule in ("halving", "cosine") and self.upper_period is None:
            allowed = f'an integer of at least 1 with upper_schedule = "{self.upper_schedule}"'
            raise BadInput("options.upper_period", NOTHING, allowed)
        if self.upper_schedule == "constant" and self.upper_period is not None:
            allowed = "a period with an upper_schedule that is not constant: halving, cosine, inverse_sqrt or inverse"
            raise BadInput("options.upper_period", self.upper_period, allowed)


class NestOptions(UpperOptions):
    """What FedNest and its local variants share."""

    lower_step: LowerStep = 0.1
    neumann_step: NeumannStep = None
    lower_rounds: LowerRounds = 1
    neumann_terms: NeumannTerms = 5
    local_steps: LocalSteps = 1
    upper_local_steps: UpperLocalStepsOrServer = 1
    estimator: Estimator = "sum"
    indices: Indices = None
    accounting: Accounting = "paper"
