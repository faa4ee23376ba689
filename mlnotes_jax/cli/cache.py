"""JAX's persistent compilation cache, in the user's cache folder.

Only the command line turns it on. A library must leave that choice to the program.
"""

import os
from pathlib import Path


def folder() -> Path | None:
    """Where compiled programs are kept: `JAX_COMPILATION_CACHE_DIR`, or the user's cache folder.

    Returns:
        The folder, or None where platformdirs is not installed or the folder cannot be made.
    """
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(named)
    try:
        import platformdirs
    except ModuleNotFoundError:
        return None
    path = Path(platformdirs.user_cache_dir("mlnotes-jax")) / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path


def turn_on() -> None:
    """Keep compiled programs of this process on disk, where there is a folder for them."""
    import jax  # not at the top: listing the demos needs no JAX

    path = folder()
    if path is not None:
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
