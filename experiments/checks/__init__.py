"""`fedbilevel check`: hypergradients and meta-gradients against dense references."""
