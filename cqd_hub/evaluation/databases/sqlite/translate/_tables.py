"""CREATE, DROP and ALTER TABLE."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from ._contexts import Scope, Statement
from ._queries import Queries
from ._types import Refused, quoted, syntax

DENIED = "{} (42000): {} command denied to user 'agent'@'localhost'"
_INTEGERS = ("INT", "BIGINT", "SMALLINT", "TINYINT", "MEDIUMINT", "UINT", "UBIGINT", "BOOLEAN",
             "USMALLINT", "UTINYINT", "UMEDIUMINT", "BIT")  # fmt: skip
_REALS = {"DOUBLE": "double", "FLOAT": "float", "DECIMAL": "decimal", "UDECIMAL": "decimal"}
_TEXTS = ("TEXT", "MEDIUMTEXT", "LONGTEXT", "TINYTEXT", "BLOB", "LONGBLOB", "MEDIUMBLOB", "JSON",
          "TINYBLOB", "ENUM", "SET", "BINARY", "VARBINARY")  # fmt: skip
_TIMES = ("DATE", "DATETIME", "TIMESTAMP", "TIME", "YEAR", "TIMESTAMPTZ", "TIMESTAMPNTZ")


class Tables:
    """Writes what makes, changes and drops tables."""

    def __init__(self, statement: Statement) -> None:
        self.statement, self.queries = statement, Queries(statement)
        self.expressions = self.queries.expressions

    def _target(self, node: exp.Expr) -> str:
        """The table a statement is about."""
        table = node.this if isinstance(node, exp.Schema) else node
        if not isinstance(table, exp.Table) or not isinstance(table.this, exp.Identifier):
            raise syntax(node.sql("mysql"))
        database = table.text("db")
        if database and database != self.statement.database:
            raise Refused(f"1049 (42000): Unknown database '{database}'")
        return table.name

    def _create(self, node: exp.Create) -> dict[str, Any]:
        kind = str(node.args.get("kind") or "").upper()
        if kind == "INDEX":
            table = node.this.args.get("table") if isinstance(node.this, exp.Index) else None
            return {"sql": "", "tables": [table.name] if table is not None else []}
        if kind in ("DATABASE", "SCHEMA"):
            raise Refused("1044 (42000): Access denied for user 'agent'@'localhost' to database")
        if kind != "TABLE":
            raise Refused(DENIED.format(1142, f"CREATE {kind}"))
        name = self._target(node.this)
        exists = "IF NOT EXISTS " if node.args.get("exists") else ""
        head = f"CREATE TABLE {exists}{quoted(name)}"
        if node.expression is not None:
            sql, _ = self.queries.write(node.expression)
            return {"sql": f"{head} AS {sql}"}
        if not isinstance(node.this, exp.Schema):
            return self._create_like(node, head)
        items, keys = [], []
        for item in node.this.expressions:
            if isinstance(item, exp.ColumnDef):
                items.append(self._column(item))
            elif isinstance(item, exp.PrimaryKey):
                keys = [part.name for part in item.expressions]
            elif isinstance(item, exp.Identifier):
                raise syntax(item.name)
        if keys:
            items.append(f"PRIMARY KEY ({', '.join(map(quoted, keys))})")
        return {"sql": f"{head} ({', '.join(items)})", "tables": []}

    def _create_like(self, node: exp.Create, head: str) -> dict[str, Any]:
        properties = node.args.get("properties")
        for item in properties.expressions if properties is not None else []:
            if isinstance(item, exp.LikeProperty):
                name = self._target(item.this)
                return {"sql": f"{head} AS SELECT * FROM {quoted(name)} WHERE 0", "tables": [name]}
        raise Refused("4028 (HY000): A table must have at least one visible column.")

    def _column(self, node: exp.ColumnDef) -> str:
        kind = node.args.get("kind")
        if kind is None:
            raise syntax(node.sql("mysql"))
        name = node.name
        parts = [quoted(name), _declared(kind)]
        value: exp.Expr | None = None
        for constraint in node.args.get("constraints") or []:
            what = constraint.kind
            if isinstance(what, exp.NotNullColumnConstraint) and not what.args.get("allow_null"):
                parts.append("NOT NULL")
            elif isinstance(what, exp.PrimaryKeyColumnConstraint):
                parts.append("PRIMARY KEY")
            elif isinstance(what, exp.UniqueColumnConstraint):
                parts.append("UNIQUE")
            elif isinstance(what, exp.DefaultColumnConstraint):
                value = what.this
        if isinstance(value, (exp.Literal, exp.Neg)):
            parts.append(f"DEFAULT {self.expressions.write(value, Scope()).sql}")
        word = kind.this.name if isinstance(kind.this, exp.DataType.Type) else ""
        shown = quoted(name)
        if word in _INTEGERS:
            whole = f"typeof({shown}) IN ('integer', 'null')"
            parts.append(f"CONSTRAINT {quoted(f'integer {name}')} CHECK ({whole})")
        elif word in ("VARCHAR", "CHAR") and kind.expressions:
            size = kind.expressions[0].name
            if size.isdigit():
                fits = f"my_char_length({shown}) <= {int(size)}"
                parts.append(f"CONSTRAINT {quoted(f'length {name}')} CHECK ({fits})")
        return " ".join(parts)

    def _drop(self, node: exp.Drop) -> dict[str, Any]:
        kind = str(node.args.get("kind") or "").upper()
        target = (node.args.get("tables") or [node.this])[0]
        if target is None:
            raise syntax(node.sql("mysql"))
        if kind in ("DATABASE", "SCHEMA"):
            name = target.name
            if name != self.statement.database:
                raise Refused(f"1008 (HY000): Can't drop database '{name}'; database doesn't exist")
            return {"sql": "", "drop": True, "tables": []}
        if kind == "INDEX":
            return {"sql": "", "tables": []}
        if kind != "TABLE":
            raise Refused(DENIED.format(1142, f"DROP {kind}"))
        exists = "IF EXISTS " if node.args.get("exists") else ""
        name = self._target(target)
        return {
            "sql": f"DROP TABLE {exists}{quoted(name)}",
            "dropped": "" if exists else name,
            "tables": [],
        }

    def _alter(self, node: exp.Alter) -> dict[str, Any]:
        name = self._target(node.this)
        actions = node.args.get("actions") or []
        if str(node.args.get("kind") or "").upper() != "TABLE" or len(actions) != 1:
            raise Refused("1235 (42000): This version of MySQL doesn't yet support 'ALTER'")
        action = actions[0]
        head = f"ALTER TABLE {quoted(name)}"
        if isinstance(action, exp.ColumnDef):
            sql = f"{head} ADD COLUMN {self._column(action)}"
        elif isinstance(action, exp.Drop) and str(action.args.get("kind")).upper() == "COLUMN":
            dropped = (action.args.get("tables") or [action.this])[0]
            sql = f"{head} DROP COLUMN {quoted(dropped.name)}"
        elif isinstance(action, exp.RenameColumn):
            old, new = action.this.name, action.args["to"].name
            sql = f"{head} RENAME COLUMN {quoted(old)} TO {quoted(new)}"
        elif isinstance(action, exp.AlterRename):
            sql = f"{head} RENAME TO {quoted(action.this.name)}"
        elif isinstance(action, exp.ModifyColumn):
            old = action.args.get("rename_from")  # of the new type SQLite needs to know nothing
            new = action.this.name
            sql = f"{head} RENAME COLUMN {quoted(old.name)} TO {quoted(new)}" if old else ""
        else:
            raise Refused("1235 (42000): This version of MySQL doesn't yet support 'ALTER'")
        return {"sql": sql, "tables": [name]}


def _declared(kind: exp.DataType) -> str:
    """The type as DESCRIBE shows it, such that SQLite stores what MySQL would."""
    word = kind.this.name if isinstance(kind.this, exp.DataType.Type) else ""
    sizes = [item.name for item in kind.expressions]
    size = f"({','.join(sizes)})" if sizes and all(item.isdigit() for item in sizes) else ""
    if word in _INTEGERS:
        return {"BOOLEAN": "tinyint(1)", "UINT": "int unsigned", "UBIGINT": "bigint unsigned"}.get(
            word, word.lower().removeprefix("u") if word != "BIT" else "tinyint(1)"
        )
    if word in _REALS:
        return f"{_REALS[word]}{size}"
    if word in _TIMES:
        return f"{word.lower().removesuffix('tz').removesuffix('ntz')} COLLATE mysql"
    if word in _TEXTS:
        return "text COLLATE mysql"
    if word in ("VARCHAR", "CHAR", "NVARCHAR", "NCHAR"):
        return f"{word.lower()}{size} COLLATE mysql"
    raise syntax(kind.sql("mysql"))
