"""`mlnotes doctor`: what JAX sees on this machine, and what is missing."""

import dataclasses
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from mlnotes_jax.cli import cache

PACKAGES = ("mlnotes-jax", "jax", "jaxlib", "flax", "optax", "chex", "numpy", "scikit-learn")
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "jax-rocm7-plugin", "libtpu", "jax-metal")

#: The oldest NVIDIA driver for which the wheels of a CUDA version are made.
OLDEST_DRIVER = {"cuda": 580, "cuda12": 525}


@dataclasses.dataclass
class Options:
    """Say what JAX sees on this machine, and what is missing. Exit status 1 on a problem."""


class Gpu(NamedTuple):
    """A GPU as `nvidia-smi` reports it: its name and its driver's version."""

    name: str
    driver: str


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        facts: Pairs of a thing and its state.
        problems: Plain sentences, each with its cure; empty when all is well.
    """

    facts: list[tuple[str, str]]
    problems: list[str]


def main(args: list[str]) -> int:
    """Print the diagnosis.

    Args:
        args: The words after `mlnotes doctor`.

    Returns:
        0, or 1 when there is a problem.
    """
    tyro.cli(Options, prog="mlnotes doctor", args=args)
    diagnosis = diagnose(nvidia_gpus())
    console = Console()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for fact in diagnosis.facts:
        table.add_row(*fact)
    console.print(table, highlight=False)
    for problem in diagnosis.problems:
        console.print(f"\nProblem: {problem}", highlight=False, markup=False)
    return 1 if diagnosis.problems else 0


def diagnose(gpus: Sequence[Gpu]) -> Diagnosis:
    """Compare the hardware with what JAX sees.

    Args:
        gpus: The GPUs that the driver reports, see `nvidia_gpus`.

    Returns:
        Facts and problems.
    """
    facts = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    facts += [(name, version(name) or "not installed") for name in PACKAGES]
    problems = []

    import jax
    import jax.numpy as jnp

    try:
        devices = jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS asks for what is not there
        devices = []
        problems.append(f"JAX cannot start: {str(error).splitlines()[0]}")
    facts.append(("devices", ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in devices)))
    if platforms := os.environ.get("JAX_PLATFORMS"):
        facts.append(("JAX_PLATFORMS", platforms))
    facts += [(name, version(name) or "not installed") for name in PLUGINS]
    facts.append(("hardware", "; ".join(hardware(gpus)) or "no accelerator found: the CPU is used"))

    facts.append(("default dtype", str(jnp.result_type(float))))
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    facts.append(("matmul precision", precision or "the device's default (TF32 on recent GPUs)"))
    folder = cache.folder()
    facts.append(("compiled programs", str(folder) if folder else "not kept: no platformdirs"))

    if gpus and not any(device.platform in ("gpu", "cuda") for device in devices):
        problems.append(f"nvidia-smi sees {gpus[0].name}, but JAX does not. {cure(gpus[0].driver)}")
    return Diagnosis(facts, problems)


def cure(driver: str) -> str:
    """Say what to do on a machine with an NVIDIA GPU that JAX does not see.

    Args:
        driver: The driver's version, such as `580.95.05`.

    Returns:
        A sentence.
    """
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return "JAX_PLATFORMS=cpu hides it: unset that variable."
    number = driver.split(".")[0]
    major = int(number) if number.isdigit() else 0
    for extra, oldest in OLDEST_DRIVER.items():
        if major >= oldest:
            if version(f"jax-{'cuda13' if extra == 'cuda' else extra}-plugin"):
                return (
                    "The plugin is installed but did not load: look at the warning that JAX "
                    "printed, and unset LD_LIBRARY_PATH, which may bring other CUDA libraries."
                )
            return f'Install the plugin: pip install "mlnotes-jax[{extra}]" (driver {driver}).'
    return (
        f"Its driver {driver} is too old: CUDA 13 needs {OLDEST_DRIVER['cuda']} or newer, "
        f"CUDA 12 needs {OLDEST_DRIVER['cuda12']} or newer."
    )


def nvidia_gpus() -> list[Gpu]:
    """Ask `nvidia-smi` for GPUs; none where the program is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(",") for line in done.stdout.splitlines() if "," in line]
    return [Gpu(name.strip(), driver.strip()) for name, driver, *_ in rows]


def hardware(gpus: Sequence[Gpu]) -> list[str]:
    """Name the accelerators of this machine, each with the extra that serves it."""
    found = [f"{gpu.name}, driver {gpu.driver}" for gpu in gpus]
    if Path("/dev/accel0").exists() or os.environ.get("TPU_NAME"):
        found.append('TPU (pip install "mlnotes-jax[tpu]")')
    if Path("/dev/kfd").exists():
        found.append("AMD GPU (JAX's ROCm plugin; not tested here)")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append("Apple silicon (JAX runs on its CPU)")
    return found


def version(package: str) -> str:
    """Version of an installed distribution, or an empty string."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
