"""`python -m bench [KEY ...]`: measure everything (or these keys), print a table, and write bench/results.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from bench import conv_meta, engines, meta, rules, simulation
from fedbilevel.errors import BadInput
from fedbilevel.results import write_whole

RESULTS = Path(__file__).parent / "results.json"

REACH: dict[str, tuple[str, float]] = {
    "fednest_fig2_units": ("<=", 9),
    "fednest_fig2_units_one_thread": ("<=", 9),
    "aggitd_fig2_units": ("<=", 9),
    "aggitd_fig2_units_one_thread": ("<=", 9),
    "simfbo_fig2_units": ("<=", 6),
    "aggitd_s_over_simfbo": ("<=", 1.25),
    "aggitd_s_over_simfbo_one_thread": ("<=", 1.25),
    "round_overhead_ms": ("<=", 1.0),
    "client_overhead_us": ("<=", 5),
    "population_ratio": ("<=", 1.2),
    "population_peak_mb": ("<=", 500),
    "ray_round_overhead_ms": ("<=", 10),
    "ray_speedup": (">=", 1.6),
    "sweep_speedup": (">=", 1.6),
    "memory_drift_mb": ("<=", 5),
    "startup_s": ("<=", 3.0),
    "stock_flower_ratio": (">=", 20),
    "few_shot_batch_speedup": (">=", 5),
    "few_shot_conv_speedup": (">=", 2),
    "few_shot_conv_library_speedup": (">=", 3),
    "trimmed_mean_ms": ("<=", 150),
    "nnm_trimmed_mean_ms": ("<=", 400),
}
"""What each key is to reach on two cores."""

Value = float | Mapping[str, float]
"""What a measure gives: a number, or one per method."""

MEASURES: dict[str, Callable[[], Value]] = {
    **engines.MEASURES,
    **simulation.MEASURES,
    **meta.MEASURES,
    **conv_meta.MEASURES,
    **rules.MEASURES,
}


def machine() -> dict[str, str | int]:
    """What the numbers were measured on, and with."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    versions = {name: version(name) for name in ("torch", "flwr", "ray", "numpy")}
    return {
        "processor": names[0] if names else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def main(keys: list[str]) -> int:
    """Measure; returns 1 if a key that was measured misses what it is to reach."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results: dict[str, Value | None] = {} if not keys else dict(known.get("results", {}))
    missed = 0
    for key in keys or MEASURES:
        try:
            value = MEASURES[key]()
        except BadInput as error:
            results[key] = None
            print(f"{key:30} skipped: {error}", flush=True)
            continue
        if isinstance(value, Mapping):
            results[key] = rounded = {name: round(each, 3) for name, each in value.items()}
            for name, each in rounded.items():
                print(f"{f'{key} {name}':30} {each:10.3f}", flush=True)
            continue
        results[key] = value = round(value, 3)
        sign, bound = REACH.get(key, ("", 0.0))
        passed = not sign or (value <= bound if sign == "<=" else value >= bound)
        missed += not passed
        print(
            f"{key:30} {value:10.3f}   {f'{sign} {bound:g}' if sign else '':8} {'' if passed else 'MISSED'}", flush=True
        )
    content = {"machine": machine(), "results": results}
    write_whole(RESULTS, (json.dumps(content, indent=2) + "\n").encode())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
