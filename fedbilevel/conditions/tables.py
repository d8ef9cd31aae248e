"""The conditions of a federation beside its systems: how answers are aggregated, compressed and protected."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedbilevel.conditions.attacks import Byzantine
from fedbilevel.conditions.compression import ChannelTable
from fedbilevel.conditions.privacy import PrivacyTable
from fedbilevel.conditions.rule import AggregationTable
from fedbilevel.errors import BadInput


@dataclass(frozen=True)
class Conditions:
    """The tables `[aggregation]`, `[channel]` and `[privacy]` (None: nothing is protected)."""

    aggregation: AggregationTable = field(default_factory=AggregationTable)
    channel: ChannelTable = field(default_factory=ChannelTable)
    privacy: PrivacyTable | None = None

    @property
    def polite(self) -> bool:
        """Whether the sum of the answers as they were sent is all that is needed of them."""
        return self.aggregation.polite and self.channel.uplink == "exact" and self.privacy is None

    def apart(self, byzantine: Byzantine | None) -> bool:
        """Whether every client's own answer is needed, with these attackers."""
        return not self.polite or (byzantine is not None and byzantine.of_answers)

    def hold(self, answers: int, expected: float) -> None:
        """Hold the tables against each other and the number of clients asked in a round. Raises BadInput."""
        rule, private = self.aggregation, self.privacy
        if private is not None and not rule.polite:
            named = rule.rule if rule.rule != "mean" else f"mean after {rule.before}"
            raise BadInput("aggregation.rule", named, "mean with a table [privacy]: its noise is that of a sum")
        rule.hold(answers)
        if private is not None and private.adaptive is not None and private.noise_multiplier > 0:
            noise = private.adaptive.noise(expected)
            if private.noise_multiplier >= 2 * noise:
                allowed = f"above half the noise_multiplier, {private.noise_multiplier / 2:g}"
                raise BadInput("privacy.adaptive.count_noise", noise, allowed)
