"""The `[aggregation]` table: how the answers of a round become one vector."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedbilevel.errors import BadInput
from fedbilevel.robust.rules import Before, Rule, most_byzantine
from fedbilevel.strict import MOST, Positive, Strict


class AggregationTable(Strict):
    """The `[aggregation]` table. Every rule but the mean gives each client one vote: p_i are not used.

    Each output of an operation is aggregated by itself, an iterate's displacement in its place.
    """

    rule: Rule = Field("mean", description="of the answers of a round")
    before: Before | None = Field(None, description="what is done to the answers before: nnm or bucketing")
    byzantine: int = Field(0, ge=0, le=MOST, description="f: how many attackers the rule is to withstand")
    bucket: int = Field(2, ge=1, le=MOST, description="answers of a bucket, before = bucketing")
    radius: Positive = Field(1.0, description="of centred_clipping")

    @model_validator(mode="after")
    def _robust(self) -> AggregationTable:
        if self.rule == "mean" and self.byzantine and self.before is None:
            raise BadInput("byzantine", self.byzantine, '0 with rule = "mean", which withstands nobody')
        return self

    @property
    def polite(self) -> bool:
        """Whether it is the weighted mean."""
        return self.rule == "mean" and self.before is None

    def most(self, answers: int) -> int:
        """The largest f that the rule takes of so many answers."""
        return most_byzantine(self.rule, answers, self.before, self.bucket)

    def hold(self, answers: int) -> None:
        """Raises BadInput for more attackers than the rule withstands among so many answers."""
        if self.byzantine > (most := self.most(answers)):
            before = "" if self.before is None else f" after {self.before}"
            allowed = f"at most {most}: {self.rule}{before} of {answers} answers withstands no more"
            raise BadInput("aggregation.byzantine", self.byzantine, allowed)
