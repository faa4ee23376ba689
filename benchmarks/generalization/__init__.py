"""Benchmarks of `mlnotes_jax.generalization`."""
