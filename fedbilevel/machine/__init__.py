"""The machine: where tensors live, how much memory is left, and how much a computation takes."""
