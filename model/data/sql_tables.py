"""SQL tables from files of clicks and notes, in DuckDB or Spark: one query text runs on either."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, Protocol

MAX_THREADS = 4
"""Maximum DuckDB threads: they share the memory, and a large join fails if each has too little."""
CSV_DIALECT = """delim = ',', quote = '"', escape = '"', comment = '', skip = 0"""
"""Fixed dialect for DuckDB, which would otherwise guess it from the first lines."""
_SOURCES = {
    "json": "read_json(?, format = 'newline_delimited', hive_partitioning = false, {json})",
    "csv": f"read_csv(?, header = true, all_varchar = true, union_by_name = true, hive_partitioning = false, "
    f"{CSV_DIALECT})",
    "parquet": "read_parquet(?, union_by_name = true, hive_partitioning = false)",
}
"""DuckDB's functions that read files, by format; `{json}` stands for further options of the first. A folder named
"user=7" is only a folder: DuckDB would make a column of it."""
PARQUET_FILE = "read_parquet(?, hive_partitioning = false)"
"""DuckDB's function that reads one Parquet file of ours; its path is a `literal_path`."""
Functions = Mapping[str, Callable[[str], str]]
"""Functions from text to text that queries may call, by their SQL names."""


def literal_path(path: Path) -> str:
    """Return a path for DuckDB, in which the characters of patterns stand for themselves."""
    return re.sub(r"[\[*?]", r"[\g<0>]", str(path))


class TablesError(Exception):
    """An engine cannot start; the message says what it needs."""


class Tables(Protocol):
    """Tables of one engine: the port for everything in which the engines differ."""

    failures: tuple[type[Exception], ...]
    """Exceptions that the engine raises from any method."""

    def __init__(self, folder: Path, memory: str, functions: Functions) -> None:
        """Start the engine. `folder`: spill space beyond `memory`. `functions`: for queries. Raises TablesError."""

    def read(self, paths: Sequence[Path], kind: str, columns: Sequence[str], name: str) -> None:
        """Make the table `name` from files: `columns` as text, NULL where a column is missing, and `line`."""

    def keep(self, name: str, sql: str, values: Sequence[Any] = ()) -> None:
        """Make a table from a query, with its rows in any order."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""

    def write(self, sql: str, values: Sequence[Any], folder: Path) -> None:
        """Write the rows of a query, in any order, as Parquet files in a new folder."""

    def close(self) -> None: ...


class DuckDBTables:
    """Tables in a file inside `folder`, so that neither they nor a large join exceed `memory`."""

    def __init__(self, folder: Path, memory: str, functions: Functions) -> None:
        import duckdb

        self.failures: tuple[type[Exception], ...] = (duckdb.Error,)
        threads = min(MAX_THREADS, os.cpu_count() or 1)
        try:
            self._connection = duckdb.connect(
                str(folder / "tables.duckdb"),
                config={"memory_limit": memory, "temp_directory": str(folder / "spill"), "threads": threads},
            )
        except duckdb.Error as error:
            raise TablesError(f"DuckDB did not start with a memory limit of {memory!r}: {error}") from error
        for name, function in functions.items():
            self._connection.create_function(name, function, ["VARCHAR"], "VARCHAR")
        # Spark's name for the type of times with an offset. In both engines, a time without an offset is UTC.
        self._connection.execute("CREATE TEMP TYPE timestamp_ltz AS TIMESTAMPTZ; SET TimeZone = 'UTC'")

    def read(self, paths: Sequence[Path], kind: str, columns: Sequence[str], name: str) -> None:
        texts = ", ".join(f"{column}: 'VARCHAR'" for column in columns)
        source = _SOURCES[kind].format(json=f"columns = {{{texts}}}")
        types = self._types(source, paths)
        chosen = ", ".join(f"{_as_text(c, types.get(c))} AS {c}" for c in columns)
        self._connection.execute("SET preserve_insertion_order = true")
        self._create(
            name, f"SELECT {chosen}, row_number() OVER () AS line FROM {source}", [[*map(literal_path, paths)]]
        )

    def columns(self, path: Path, kind: str) -> list[str]:
        """Return all columns of a file; of a JSON file, those of its first lines."""
        return [*self._types(_SOURCES[kind].format(json="sample_size = 1000"), [path])]

    def _types(self, source: str, paths: Sequence[Path]) -> dict[str, str]:
        """Return the SQL types of all columns, by their names."""
        return {row[0]: row[1] for row in self.rows(f"DESCRIBE SELECT * FROM {source}", [[*map(literal_path, paths)]])}

    def keep(self, name: str, sql: str, values: Sequence[Any] = ()) -> None:
        self._connection.execute("SET preserve_insertion_order = false")
        self._create(name, sql, values)

    def _create(self, name: str, sql: str, values: Sequence[Any]) -> None:
        self._connection.execute(f"CREATE TABLE {name} AS {sql}", values)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, values).fetchall()

    def write(self, sql: str, values: Sequence[Any], folder: Path) -> None:
        folder.mkdir()
        self._connection.execute("SET preserve_insertion_order = false")
        self.copy(sql, values, folder / "rows.parquet")

    def copy(self, sql: str, values: Sequence[Any], path: Path) -> None:
        """Write the rows of a query, in their order, as one Parquet file."""
        target = str(path).replace("'", "''")
        self._connection.execute(f"COPY ({sql}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)", values)

    def close(self) -> None:
        self._connection.close()


def _as_text(column: str, kind: str | None) -> str:
    """Return DuckDB's expression for a column of an SQL type as text: nested values as JSON, which readers of ids
    refuse; NULL for None, a missing column."""
    if kind is None:
        return "CAST(NULL AS VARCHAR)"
    is_nested = kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION"))
    return f"CAST({f'to_json({column})' if is_nested else column} AS VARCHAR)"


class SparkTables:
    """Tables in a new session of the running Spark, which is started if there is none."""

    def __init__(self, folder: Path, memory: str, functions: Functions) -> None:
        from py4j.protocol import Py4JError
        from pyspark import cloudpickle
        from pyspark.errors import PySparkException
        from pyspark.sql import DataFrame, SparkSession

        self.failures: tuple[type[Exception], ...] = (PySparkException, Py4JError)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise workers run the first python3 on PATH
        self._owned = SparkSession.getActiveSession() is None
        self._kept: list[DataFrame] = []
        try:
            self._session = SparkSession.builder.appName("notellm pairs").getOrCreate().newSession()
        except self.failures as error:
            raise TablesError(f"Spark did not start; it needs Java 17 or later: {error}") from error
        self._session.conf.set("spark.sql.session.timeZone", "UTC")
        for name, function in functions.items():
            cloudpickle.register_pickle_by_value(sys.modules[function.__module__])  # workers may not have this package
            self._session.udf.register(name, function, "string")

    def read(self, paths: Sequence[Path], kind: str, columns: Sequence[str], name: str) -> None:
        from pyspark.sql import DataFrame
        from pyspark.sql.functions import col, lit, monotonically_increasing_id

        reader, files = self._session.read.option("mode", "FAILFAST"), [*map(str, paths)]
        if kind == "json":
            frame = reader.schema(", ".join(f"`{column}` STRING" for column in columns)).json(files)
        elif kind == "csv":
            parts = [reader.option("header", True).option("escape", '"').csv(file) for file in files]
            # One by one, since Spark reads all files of a call by the header of one, whatever theirs are.
            frame = reduce(partial(DataFrame.unionByName, allowMissingColumns=True), parts)
        else:
            frame = reader.option("mergeSchema", True).parquet(*files)
        chosen = [(col(c) if c in frame.columns else lit(None)).cast("string").alias(c) for c in columns]
        # The id grows along the file, since the parts of a file become partitions in their order.
        frame.select(*chosen, monotonically_increasing_id().alias("line")).createOrReplaceTempView(name)

    def keep(self, name: str, sql: str, values: Sequence[Any] = ()) -> None:
        frame = self._session.sql(sql, args=list(values)).persist()
        frame.createOrReplaceTempView(name)
        self._kept.append(frame)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._session.sql(sql, args=list(values)).collect()]

    def write(self, sql: str, values: Sequence[Any], folder: Path) -> None:
        self._session.sql(sql, args=list(values)).write.parquet(str(folder))

    def close(self) -> None:
        for frame in self._kept:
            frame.unpersist()
        if self._owned:
            self._session.stop()


ENGINES: Mapping[str, type[Tables]] = {"duckdb": DuckDBTables, "spark": SparkTables}
