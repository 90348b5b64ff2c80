"""Output that is whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.leukemia.data import UserError

__all__ = ["new_folder", "write_json", "write_lines", "write_whole"]


@contextmanager
def new_folder(target: Path, mark: str = "metrics.json") -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends, and disappears if it fails.

    It lies beside the target, so that becoming it is one rename. An earlier outcome at `target` stays whole until then
    and is replaced whole; a folder that holds anything else is refused.

    Args:
        mark: a file of this name says that a folder is a finished outcome of the same command.

    Raises:
        UserError: `target` holds other files, or cannot be written.
    """
    if target.exists() and not (target / mark).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an earlier run's folder: give an --out that is new or empty")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): give another --out") from None
    try:
        work.chmod(0o777 & ~_umask())  # mkdtemp's folder is the owner's alone
        yield work
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(work, target)
            shutil.rmtree(old)
        else:
            os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its target and rename it: whoever reads `path` finds all of it or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
