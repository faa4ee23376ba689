"""Runs the Python blocks of pages, each page in a process of its own.

Started by `snippets.Runner`. Where the system can fork (Linux, macOS), this process imports JAX
and matplotlib once and forks a child for every page, so that a page starts in milliseconds and
sees nothing of another page. Elsewhere (Windows) it runs one page and ends; the runner starts the
next: the results are the same, each page only waits for its own imports.

A request is one line of JSON: `path` (shown in tracebacks), `lines` (the whole file), `blocks`
(pairs of first line, counted from 1, and code), `timeout` (seconds), `root` (the repository). The
answer is one line: `outputs` and `reads`, or `line` and `error`.
"""

import ast
import contextlib
import io
import json
import linecache
import os
import signal
import sys
import time
import traceback
import types
import warnings
from typing import Any

FORKS = hasattr(os, "fork")

_GRACE = 2.0  # seconds between asking a page to stop and killing it


def _imports() -> None:
    """Import what every page needs; nothing here may start a thread or touch a device."""
    import jax
    import jax.numpy
    import matplotlib.pyplot as plt
    import numpy  # noqa: F401

    del jax, plt


class _Session:
    """One page: its blocks share a namespace, as the cells of a notebook do."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.path: str = request["path"]
        # Pickle, dataclasses and typing look classes up in sys.modules["__main__"].
        self.module = types.ModuleType("__main__")
        sys.modules["__main__"] = self.module
        lines = [line + "\n" for line in request["lines"]]
        linecache.cache[self.path] = (sum(map(len, lines)), None, lines, self.path)
        self.opened: set[str] = set()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        read = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        listed = event in ("os.listdir", "os.scandir")
        if (read or listed) and isinstance(args[0], str):
            self.opened.add(os.path.abspath(args[0]))

    def run(self, announce: Any) -> dict[str, Any]:
        """Run every block; `announce` is told the line of each before it starts."""
        from mlnotes_jax.demos import figures

        outputs = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(figures.style())
            stack.enter_context(warnings.catch_warnings())
            # What Python would print is an error here: a page shows no warnings.
            warnings.simplefilter("error")
            for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", quiet)
            warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
            # Another process was just writing that program: this one compiles it itself.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            for line, code in self.request["blocks"]:
                announce(line)
                try:
                    outputs.append(self._block(line, code))
                except BaseException as error:
                    return self._failure(line, error)
        return {"outputs": outputs, "reads": self._reads()}

    def _block(self, line: int, code: str) -> dict[str, Any]:
        import jax
        import matplotlib.pyplot as plt
        from matplotlib.figure import Figure

        from mlnotes_jax.demos import figures

        # Leading newlines give the code its line numbers in the page.
        tree = ast.parse("\n" * (line - 1) + code, self.path)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        value = None
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            exec(compile(tree, self.path, "exec"), self.module.__dict__)
            if isinstance(last, ast.Expr):
                expression = compile(ast.Expression(last.value), self.path, "eval")
                value = eval(expression, self.module.__dict__)
            jax.effects_barrier()  # jax.debug.print
        drawn = [plt.figure(number) for number in plt.get_fignums()]
        # A figure made without pyplot is shown when it is the value of the last line.
        if isinstance(value, Figure) and value not in drawn:
            drawn.append(value)
        pictures = [figures.svg(figure) for figure in drawn]
        plt.close("all")
        return {"stdout": stdout.getvalue(), "figures": pictures}

    def _failure(self, line: int, error: BaseException) -> dict[str, Any]:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != self.path:
            trace = trace.tb_next
        text = "".join(traceback.format_exception(type(error), error, trace))
        if trace is not None:
            line = trace.tb_lineno
        elif isinstance(error, SyntaxError) and error.filename == self.path:
            line = error.lineno or line
        return {"line": line, "error": text}

    def _reads(self) -> list[str]:
        """Files of the repository that the page imported or read, relative to its root."""
        root = self.request["root"] + os.sep
        modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        files = {file for file in modules | self.opened if file and file.startswith(root)}
        names = {file.removeprefix(root).replace(os.sep, "/") for file in files}
        return sorted(name for name in names if _matters(name))


def _matters(name: str) -> bool:
    """Whether a file or a listed folder can change what a page shows.

    Tools, caches and environments cannot, nor can the listing of a package, which Python's import
    makes.
    """
    parts = name.split("/")
    if parts[0] == "mlnotes_jax" and "." not in parts[-1]:
        return False
    return not (
        parts[0].startswith(".")
        or parts[0] == "tools"
        or "site-packages" in parts
        or "__pycache__" in parts
    )


def _on_alarm(*_: object) -> None:
    raise TimeoutError("the page ran over its time limit")


def _in_child(request: dict[str, Any], pipe: int) -> None:
    """Run a page in a fork; write the line of each block, then the answer."""
    with os.fdopen(pipe, "w") as stream:

        def announce(line: int) -> None:
            print(json.dumps({"started": line}), file=stream, flush=True)

        signal.signal(signal.SIGALRM, _on_alarm)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        answer = _Session(request).run(announce)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), file=stream, flush=True)


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    """Run a page in a fork of this process; kill it when it does not end in time."""
    import select

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            _in_child(request, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    deadline = time.monotonic() + request["timeout"] + _GRACE
    data = b""
    expired = False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            expired = True
            os.kill(child, signal.SIGKILL)
            break
        if not (chunk := os.read(reading, 1 << 20)):
            break
        data += chunk
    os.close(reading)
    _, status = os.waitpid(child, 0)
    messages = [json.loads(line) for line in data.decode().split("\n")[:-1]]
    if messages and "started" not in messages[-1]:
        return messages[-1]
    line = messages[-1]["started"] if messages else 1
    problem = (
        "the page ran over its time limit, inside a call that could not be interrupted"
        if expired
        else f"the process ended without an answer ({os.waitstatus_to_exitcode(status)})"
    )
    return {"line": line, "error": problem}


def main() -> None:
    """Answer requests until the input ends."""
    # Nothing that a page or a library prints may get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _imports()
    for text in sys.stdin:
        request = json.loads(text)
        answer = _forked(request) if FORKS else _Session(request).run(lambda line: None)
        print(json.dumps(answer), file=answers, flush=True)
        if not FORKS:
            break


if __name__ == "__main__":
    main()
