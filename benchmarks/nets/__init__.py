"""Benchmarks of `mlnotes_jax.nets`."""
