"""The peak memory of a computation: exact, and the same every time on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch._C._autograd import _enable_record_function
from torch.autograd.profiler import profile


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes of tensors alive at one time during function(), beyond those alive before.

    On a CPU every allocation and release is read from torch's profiler, temporaries inside of operations included;
    what function() releases of what was there before does not count. On CUDA torch's allocator counts.

    >>> peak_memory(lambda: torch.zeros(1000).add(1.0).sum().item()) >= 8000
    True
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(profile_memory=True, use_kineto=True) as found:
        _enable_record_function(False)  # else every operation is noted too, and most of the time goes there
        try:
            function()
        finally:
            _enable_record_function(True)
    events = found.kineto_results.events()
    moves = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    alive = most = 0
    for _, size in moves:
        alive += size
        most = max(most, alive)
    return most
