"""Ctrl-C while `python -m lora_lite` still imports PyTorch, which takes a second: end without a traceback.

As llama_min has it, which this package does not import: Python imports a package before it runs its `__main__`, so the
system's own way to end is in force for just that time, and only where the package is run as a command.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["listen_again"]

_line = sys.orig_argv
# not where somebody has made the process deaf to Ctrl-C, as a shell does with background jobs
_ended_by_the_system = (
    "-m" in _line
    and _line[_line.index("-m") + 1 :][:1] == ["lora_lite"]
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _ended_by_the_system:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def listen_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as Python has it."""
    if _ended_by_the_system:
        signal.signal(signal.SIGINT, signal.default_int_handler)
