"""Settings of the whole test suite, and the two databases that tests of the store run on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.postgres import drop_schemas, postgres_url

# Before anything imports a numerical library: tests share few cores, and one thread is reproducible.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked ``stores`` run on SQLite, and once more on PostgreSQL under the marker ``postgres``."""
    if metafunc.definition.get_closest_marker("stores"):
        databases = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
        metafunc.parametrize("database", databases, indirect=True)


@pytest.fixture(autouse=True)
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where stores that a test makes are: ``sqlite``, or ``postgresql`` by the environment."""
    kind = getattr(request, "param", "sqlite")
    monkeypatch.delenv("HPCAL_STORE", raising=False)
    if kind == "sqlite":
        yield kind
        return
    url, folder = postgres_url(), request.getfixturevalue("tmp_path")
    monkeypatch.setenv("HPCAL_STORE", url)
    yield kind
    drop_schemas(url, folder)
