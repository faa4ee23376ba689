"""One strict configuration for every test."""

import importlib.util
import os
import sys

import jax
import pytest

# Rank promotion hides shape errors, dtype promotion hides precision loss: neither is allowed.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

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
