"""Benchmarks: what a round costs on each engine, and what more processes gain."""
