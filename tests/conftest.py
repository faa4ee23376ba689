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

# Compiling takes most of the time. Programs, small ones too, are kept for the other workers, the
# next file and the next run. The variable is for the programs that tests start.
PROGRAMS = str(Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
jax.config.update("jax_compilation_cache_dir", PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

IN_CI = bool(os.environ.get("CI"))


@pytest.fixture(scope="module", autouse=True)
def no_programs_left():
    """Drop compiled programs after each file.

    Each program maps memory of its own. Linux allows a process 65 530 maps; the whole suite would
    need more, and then nothing compiles, forks or opens a file any more.
    """
    yield
    jax.clear_caches()


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
