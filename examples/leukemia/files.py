"""Output that is whole or not there at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.leukemia.data import UserError

try:
    import fcntl
except ImportError:  # Windows: what a killed process left there stays
    fcntl = None

__all__ = ["new_folder", "write_json", "write_lines", "write_whole"]


@contextmanager
def new_folder(target: Path, made: Collection[str], mark: str = "metrics.json") -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends, and disappears if it fails.

    It lies beside the target, so that becoming it is one rename. An earlier outcome at `target` stays whole until then
    and is replaced whole; a folder that holds anything else is refused. What a killed process left is removed.

    Args:
        made: every name that an outcome of this command may have at its top.
        mark: a file of this name says that an outcome is finished.

    Raises:
        UserError: `target` holds other files, or cannot be written or replaced, or another process is writing it.
    """
    target = Path(os.path.realpath(target))  # where a link points to, on whatever disk
    _check_replaceable(target, made, mark)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")
        _remove_left_over(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): give another --out") from None
    lock = _lock(work)
    try:
        work.chmod(0o777 & ~_umask())  # mkdtemp's folder is the owner's alone
        yield work
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent))
            try:
                os.replace(target, old / target.name)
                os.replace(work, target)
            finally:
                if not target.exists():  # a stop between the two
                    os.replace(old / target.name, target)
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _check_replaceable(target: Path, made: Collection[str], mark: str) -> None:
    """Raise UserError where there is anything at `target` but an empty folder or a finished outcome, and that alone."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} exists and is not an earlier run's folder: give an --out that is new or empty")
    if os.path.ismount(target) or target.samefile(Path.cwd()):
        raise UserError(
            f"{target} is the folder you are in or a disk, which no new one can replace: give a folder in it"
        )
    names = sorted(path.name for path in target.iterdir())
    if names and mark not in names:
        raise UserError(f"{target} exists and is not an earlier run's folder: give an --out that is new or empty")
    if foreign := [name for name in names if name not in made]:
        raise UserError(
            f"{target} also holds {foreign[0]!r}, which is not an earlier run's: move it away, or give another --out"
        )


def _remove_left_over(target: Path) -> None:
    """Remove the unfinished folders of processes that are gone; their locks went with them.

    Where one was killed between the two renames that replace an earlier outcome, that outcome gets its name back.
    """
    name = glob.escape(target.name)
    for left in sorted(target.parent.glob(f".{name}.unfinished-*")):
        try:
            lock = _lock(left)
        except BlockingIOError:
            raise UserError(f"another process is writing {target}: wait for it, or give another --out") from None
        if lock is not None:
            os.close(lock)
            shutil.rmtree(left, ignore_errors=True)
    for old in sorted(target.parent.glob(f".{name}.replaced-*")):
        if not target.exists() and (old / target.name).exists():
            os.replace(old / target.name, target)
        shutil.rmtree(old, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """A handle that locks a folder until it is closed or the process ends, however it ends.

    None where the system or the disk cannot do that; BlockingIOError where another process has the lock.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


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
