"""Benchmarks of the chapter `optimization`."""
