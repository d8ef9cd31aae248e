"""The performance profile: the share of problems that each algorithm solves within a factor of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fedbilevel.figures.canvas import Name, framed, look, name_lines, save
from fedbilevel.figures.colours import styles
from fedbilevel.results.files import PathLike
from fedbilevel.statistics.profiles import Profile

STEM = "performance_profile"


def draw_profiles(profiles: Sequence[Profile], folder: PathLike, *, title: str) -> list[Path]:
    """Write `performance_profile` as `.png`, `.svg` and `.pdf` into an existing folder and return their paths.

    The same profiles give the same bytes. Raises BadInput for a file that cannot be written.
    """
    chosen = styles([profile.algorithm for profile in profiles])
    finite = [ratio for profile in profiles for ratio in profile.ratios if math.isfinite(ratio)]
    most = max(1.05 * max(finite, default=1.0), 2.0)
    count = len(profiles[0].ratios) if profiles else 0
    with look():
        from matplotlib.ticker import NullFormatter, NullLocator

        about = f"{count} problems; cost: median rounds over seeds; never arrived: no factor is enough"
        figure, axes = framed(title, about, len(profiles))
        axes.set_xlabel("factor of the rounds of the best algorithm on each problem", labelpad=7)
        axes.set_ylabel("share of problems solved within the factor", labelpad=7)
        axes.set_xscale("log")
        axes.set(xlim=(1.0, most), ylim=(-0.02, 1.02))
        ticks = [step * 10.0**power for power in range(int(math.log10(most)) + 1) for step in (1, 2, 5)]
        shown = [tick for tick in ticks if tick <= most]
        if len(shown) > 9:
            shown = [tick for tick in shown if math.log10(tick).is_integer()]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        for profile in profiles:
            style = chosen[profile.algorithm]
            steps = [1.0, *dict.fromkeys(ratio for ratio in profile.ratios if 1.0 < ratio < math.inf), most]
            shares = [profile.share(min(step, most)) for step in steps]
            axes.step(
                steps, shares, where="post", color=style.colour, linestyle=style.dash, linewidth=1.9, clip_on=False
            )
        name_lines(axes, [Name(p.algorithm, most, p.share(most), chosen[p.algorithm]) for p in profiles])
        return save(figure, folder, STEM)
