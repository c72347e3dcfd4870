"""Tables that a stranger may have written: read as the columns and types asked for, or refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cqd_hub.errors import UserError

_ROWS = 20_000_000
_UNPACKED = 8 << 30  # bytes of a row group's columns
_REMEDY = "ask its owner to push it again with `cqd-hub push`"


def read_rows(
    path: Path,
    columns: Mapping[str, str],
    *,
    where: str,
    only: tuple[str, Collection[Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, one row group in memory at a time.

    Args:
        columns: Name → ``int``, ``float``, ``text``, ``bytes`` or ``ints`` (a list); with ``?`` at
            the end it may be null. Others are not read.
        only: A column and the values to look for: row groups that hold none are skipped by their
            statistics.
        where: Names the file in errors.

    Raises:
        UserError: No parquet file, a column is missing or of another type, NaN, null where there
            may be none, or too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def refused(what: str) -> UserError:
        return UserError(what, where=where, remedy=_REMEDY)

    try:
        with pq.ParquetFile(path) as file:
            names = {field.name: field.type for field in file.schema_arrow}
            for name, kind in columns.items():
                if name not in names:
                    raise refused(f"has no column {name!r}")
                if not _is(names[name], kind.rstrip("?")):
                    raise refused(f"column {name!r} holds {names[name]}, not {kind.rstrip('?')}")
            if file.metadata.num_rows > _ROWS:
                raise refused(f"has {file.metadata.num_rows} rows; at most {_ROWS} are read")
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if group.total_byte_size > _UNPACKED:
                    raise refused(
                        f"has a row group of {group.total_byte_size} bytes; at most {_UNPACKED} "
                        "are read"
                    )
                if only is not None and _excludes(group, *only):
                    continue
                table = file.read_row_group(number, columns=list(columns))
                for row in table.to_pylist():
                    if only is not None and row[only[0]] not in only[1]:
                        continue
                    for name, kind in columns.items():
                        fault = _fault(row[name], kind)
                        if fault:
                            raise refused(f"column {name!r} holds {fault}")
                    yield row
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise refused(f"is no parquet file that can be read: {reason}") from None


def _is(found: Any, kind: str) -> bool:
    from pyarrow import types

    if types.is_dictionary(found):
        found = found.value_type
    if kind == "ints":
        listed = types.is_list(found) or types.is_large_list(found)
        return listed and (types.is_integer(found.value_type) or types.is_null(found.value_type))
    return {
        "int": types.is_integer(found),
        "float": types.is_floating(found),
        "text": types.is_string(found) or types.is_large_string(found),
        "bytes": types.is_binary(found) or types.is_large_binary(found),
    }[kind]


def _fault(value: Any, kind: str) -> str | None:
    if value is None:
        return None if kind.endswith("?") else "nothing in some row"
    if kind.startswith("float") and not math.isfinite(value):
        return "NaN or infinity"
    if kind.startswith("ints") and any(one is None for one in value):
        return "nothing in some list"
    return None


def _excludes(group: Any, name: str, values: Collection[Any]) -> bool:
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == name:
            found = column.statistics
            if not found or not found.has_min_max:
                return False
            return not any(found.min <= value <= found.max for value in values)
    return False
