"""Ctrl-C while `python -m llama_min` still imports PyTorch, which takes a second: end without a traceback.

Python imports a package before it runs its `__main__`, so nothing in there could catch it. The system's own way to end is
in force for just that time, and only where the package is run as a command.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["is_command", "listen_again"]


def is_command(line: list[str]) -> bool:
    """Whether this is the command line of `python ... -m llama_min ...`."""
    return "-m" in line and line[line.index("-m") + 1 :][:1] == ["llama_min"]


def listen_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as Python has it."""
    if _ended_by_the_system:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# not where somebody has made the process deaf to Ctrl-C, as a shell does with background jobs
_ended_by_the_system = is_command(sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _ended_by_the_system:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
