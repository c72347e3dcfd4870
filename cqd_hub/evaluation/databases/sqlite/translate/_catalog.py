"""SHOW, DESCRIBE and information_schema, asked of SQLite's own catalogue."""

from __future__ import annotations

from sqlglot import exp

from ._types import Refused, quoted, string, syntax

_TABLES = "sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
_CHARSET = "CASE WHEN lower(p.type) GLOB '*text*' OR lower(p.type) GLOB '*char*' THEN {} END"


def _names(database: str) -> str:
    return f"SELECT name, {string(database)} AS base FROM {_TABLES}"


def information_schema(name: str, database: str) -> str:
    """One of its tables, as a subquery."""
    table = name.lower()
    if table == "tables":
        return (
            "(SELECT 'def' AS TABLE_CATALOG, base AS TABLE_SCHEMA, name AS TABLE_NAME, "
            "'BASE TABLE' AS TABLE_TYPE, 'InnoDB' AS ENGINE, 10 AS VERSION, NULL AS TABLE_ROWS, "
            "'utf8mb4_0900_ai_ci' AS TABLE_COLLATION, '' AS TABLE_COMMENT "
            f"FROM ({_names(database)}))"
        )
    if table == "columns":
        return (
            "(SELECT 'def' AS TABLE_CATALOG, t.base AS TABLE_SCHEMA, t.name AS TABLE_NAME, "
            "p.name AS COLUMN_NAME, p.cid + 1 AS ORDINAL_POSITION, p.dflt_value AS COLUMN_DEFAULT, "
            "iif(p.`notnull` OR p.pk, 'NO', 'YES') AS IS_NULLABLE, "
            "lower(substr(p.type, 1, coalesce(nullif(instr(p.type, '('), 0) - 1, 999))) "
            "AS DATA_TYPE, lower(p.type) AS COLUMN_TYPE, "
            f"{_CHARSET.format(chr(39) + 'utf8mb4' + chr(39))} AS CHARACTER_SET_NAME, "
            f"{_CHARSET.format(chr(39) + 'utf8mb4_0900_ai_ci' + chr(39))} AS COLLATION_NAME, "
            "iif(p.pk, 'PRI', '') AS COLUMN_KEY, '' AS EXTRA, '' AS COLUMN_COMMENT "
            f"FROM ({_names(database)}) AS t JOIN pragma_table_info(t.name) AS p)"
        )
    if table == "schemata":
        return (
            "(SELECT 'def' AS CATALOG_NAME, value AS SCHEMA_NAME FROM "
            f"(SELECT 'information_schema' AS value UNION ALL SELECT {string(database)}))"
        )
    if table in ("key_column_usage", "table_constraints", "statistics", "views", "routines"):
        return "(SELECT NULL AS TABLE_SCHEMA, NULL AS TABLE_NAME, NULL AS COLUMN_NAME WHERE 0)"
    raise Refused(f"1109 (42S02): Unknown table '{name}' in information_schema")


def describe(name: str, *, full: bool = False) -> str:
    """The rows of DESCRIBE, or of SHOW FULL COLUMNS."""
    more = ["'select,insert,update,references'", "''"] if full else []
    collation = [_CHARSET.format("'utf8mb4_0900_ai_ci'")] if full else []
    items = [
        "p.name AS Field", "lower(p.type)", *collation, "iif(p.`notnull` OR p.pk, 'NO', 'YES')",
        "iif(p.pk, 'PRI', '')", "p.dflt_value", "''", *more,
    ]  # fmt: skip
    return f"SELECT {', '.join(items)} FROM pragma_table_info({string(name)}) AS p"


def show(node: exp.Show, database: str) -> tuple[str, list[str]]:
    """The query for a SHOW statement, and the tables it needs.

    Raises:
        Refused: It is not emulated.
    """
    kind = str(node.this).upper()
    like = node.args.get("like")
    if node.args.get("where") is not None:
        raise Refused("1235 (42000): This version of MySQL doesn't yet support 'SHOW ... WHERE'")
    pattern = like.name if isinstance(like, exp.Expr) else like

    def matching(sql: str, column: str) -> str:
        found = f"SELECT * FROM ({sql})"
        return found + (f" WHERE my_like({column}, {string(pattern)})" if pattern else "")

    target = node.args.get("target")
    name = target.name if isinstance(target, exp.Expr) else str(target or "")
    if kind in ("TABLES", "FULL TABLES"):
        more = ", 'BASE TABLE'" if node.args.get("full") else ""
        return matching(f"SELECT name{more} FROM {_TABLES} ORDER BY name", "name"), []
    if kind in ("DATABASES", "SCHEMAS"):
        names = f"SELECT 'information_schema' AS name UNION ALL SELECT {string(database)}"
        return matching(names, "name"), []
    if kind in ("COLUMNS", "FIELDS"):
        return matching(describe(name, full=bool(node.args.get("full"))), "Field"), [name]
    if kind in ("INDEX", "INDEXES", "KEYS"):
        return "SELECT NULL WHERE 0", [name] if name else []
    if kind == "CREATE TABLE":
        return create_table(name), [name]
    if kind in ("WARNINGS", "ERRORS", "PROCESSLIST", "TRIGGERS", "EVENTS", "TABLE STATUS"):
        return "SELECT NULL WHERE 0", []
    if kind in ("VARIABLES", "STATUS", "GLOBAL VARIABLES", "SESSION VARIABLES"):
        return "SELECT NULL WHERE 0", []
    raise syntax(kind)


def create_table(name: str) -> str:
    """The row of SHOW CREATE TABLE."""
    ticked = quoted(name).replace("'", "''")
    return (
        f"SELECT {string(name)}, 'CREATE TABLE {ticked} (' || char(10) || "
        "(SELECT group_concat('  `' || p.name || '` ' || lower(p.type) || "
        "iif(p.`notnull`, ' NOT NULL', iif(p.dflt_value IS NULL, ' DEFAULT NULL', '')) || "
        "coalesce(' DEFAULT ' || p.dflt_value, ''), ',' || char(10)) "
        f"FROM pragma_table_info({string(name)}) AS p) || char(10) || "
        "') ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_0900_ai_ci'"
    )
