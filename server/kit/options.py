"""The options of algorithms: one name, one meaning, one check each. The papers' symbols stand in the descriptions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedbilevel.federation.systems import LocalSteps as LocalStepsSpec
from fedbilevel.strict import MOST, PositiveInt, Strict

Step = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = PositiveInt

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

    aliases: pairs of options that are one number of this algorithm, though two of others.
    """

    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()

    def hold_local(self) -> None:
        """Raises BadInput for a value that cannot be used where the lower level is local."""


class NestOptions(Options):
    """What FedNest and its local variants share."""

    upper_step: UpperStep = 0.1
    lower_step: LowerStep = 0.1
    neumann_step: NeumannStep = None
    lower_rounds: LowerRounds = 1
    neumann_terms: NeumannTerms = 5
    local_steps: LocalSteps = 1
    upper_local_steps: UpperLocalStepsOrServer = 1
    estimator: Estimator = "sum"
    indices: Indices = None
    accounting: Accounting = "paper"
