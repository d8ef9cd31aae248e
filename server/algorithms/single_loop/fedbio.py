"""FedBiO: simultaneous local steps on x, y and v, and their average."""

from __future__ import annotations

from dataclasses import replace

from clients.operations.single_loop import simultaneous_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm, displacement
from server.kit.single_loop import SingleLoopOptions, SingleLoopState, single_loop_start


class Options(SingleLoopOptions):
    """Options of `fedbio`."""

    local_steps: options.LocalSteps = 1


@algorithm(
    "fedbio",
    source="Li, Huang & Huang, Communication-Efficient Federated Bilevel Optimization, NeurIPS 2023",
    options=Options,
    confirmed="local steps on all three variables, then averaging",
    reading="the directions: SimFBO with tau = I and server steps equal to the local ones",
)
def fedbio(o: Options) -> Algorithm[SingleLoopState]:
    """Single loop, second order: I local steps on (x, y, v), then their average; 1 round."""

    def step(state: SingleLoopState, fed: Federation) -> SingleLoopState:
        x, y, v = state.x, state.y, state.v
        # I times, all at the old point: y_i -= eta_y gy_i, v_i -= eta_v (H_i v_i - fy_i), x_i -= eta_x (fx_i - J_i v_i)
        x_next, y_next, v_next = fed.mean(simultaneous_steps, x=x, y=y, v=v, **o.steps, local_steps=o.local_steps)
        h = displacement(x, x_next, o.upper_step, fed.mean_local_steps(o.local_steps))
        return replace(state, x=x_next, y=y_next, v=v_next, hypergradient=h)

    return Algorithm(single_loop_start, step, lambda index: 1)
