"""Benchmarks of `mlnotes_jax.classification`."""
