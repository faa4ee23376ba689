"""One strict configuration for every test."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import pytest

# Rank promotion hides shape errors, dtype promotion hides precision loss: neither is allowed.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Compiling takes most of the time. Programs are kept for the other workers and for the next run.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

IN_CI = bool(os.environ.get("CI"))


@pytest.fixture
def x64():
    """Run one test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def torch():
    """PyTorch, the peer; skipped where it is not installed, an error on Python 3.11 under CI."""
    if importlib.util.find_spec("torch") is None:
        if IN_CI and sys.version_info < (3, 12):
            pytest.fail("PyTorch must be installed on Python 3.11 under CI")
        pytest.skip("PyTorch is not installed")
    import torch

    torch.set_num_threads(1)
    return torch
