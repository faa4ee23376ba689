"""Benchmarks of `mlnotes_jax.training`."""
