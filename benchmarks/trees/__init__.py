"""Benchmarks of `mlnotes_jax.trees`."""
