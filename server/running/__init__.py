"""From a config to a finished run: the plan, the loop, the experiment and its sweep, checkpoints, estimates."""
