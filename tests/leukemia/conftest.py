"""What several tests of the application do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from examples.leukemia.__main__ import main
from examples.leukemia.data import Record
from examples.leukemia.index import Index


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command line that must end with code 2, and gives its one line of error."""

    def run(*arguments: object) -> str:
        assert main([*map(str, arguments)]) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return error

    return run


@pytest.fixture
def index_of(tmp_path: Path) -> Iterator[Callable[[Sequence[Record]], Index]]:
    """Makes an index of articles, and closes it in the end."""
    made = Index(tmp_path / "index.sqlite", create=True)

    def fill(records: Sequence[Record]) -> Index:
        made.add(records)
        return made

    yield fill
    made.close()
