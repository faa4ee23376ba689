"""`mlnotes`: which command was meant, and how every command ends."""

import os
import sys
from collections.abc import Sequence

import mlnotes_jax

USAGE = """\
usage: mlnotes COMMAND [OPTIONS]

  demo             list the demos
  demo NAME        run one: numbers, timings and a picture (--help shows its options)
  tour             run every demo and make one page of the results
  doctor           say what JAX sees on this machine, and what is missing

  --version        print the version
  --help           print this
"""

#: Import name -> (what people call it, the extra that brings it).
EXTRAS = {
    "matplotlib": ("Matplotlib", "demos"),
    "platformdirs": ("platformdirs", "demos"),
    "sklearn": ("scikit-learn", "demos"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `mlnotes`; those of the process by default.

    Returns:
        The exit status: 0 done, 1 a check or a demo failed, 2 the words could not be understood
        or something is missing, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        print("\nmlnotes: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mlnotes demo | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (nothing left to flush at exit)
        return 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS:
            raise
        called, extra = EXTRAS[missing]
        print(
            f'mlnotes: {called} is missing. Cure: pip install "mlnotes-jax[{extra}]"',
            file=sys.stderr,
        )
        return 2


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if args else 2
    command, rest = args[0], args[1:]
    if command == "--version":
        print(f"mlnotes-jax {mlnotes_jax.__version__}")
        return 0
    if command == "demo":
        from mlnotes_jax.cli import demo

        return demo.main(rest)
    if command == "tour":
        from mlnotes_jax.cli import tour

        return tour.main(rest)
    if command == "doctor":
        from mlnotes_jax.cli import doctor

        return doctor.main(rest)
    print(f"mlnotes: there is no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
    return 2
