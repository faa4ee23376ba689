"""Benchmarks of `mlnotes_jax.svm`."""
