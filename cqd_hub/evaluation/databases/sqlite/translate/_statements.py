"""Statements: what changes tables, what shows them, and what is refused."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from ._catalog import describe, show
from ._contexts import Scope, Statement
from ._tables import DENIED, Tables
from ._tokens import statements
from ._types import Refused, Written, quoted, syntax


def translate(sql: str, database: str, strict: bool) -> list[dict[str, Any]]:
    """Each statement of *sql* as the server takes it.

    Args:
        sql: One or more of MySQL's statements.
        database: The database's name.
        strict: Refuse text that is no number where a statement changes something.

    Returns:
        Per statement, up to the first that is refused: `sql` (SQLite's), or `fault` (MySQL's
        error); `tables` that must be there, spelt exactly so; `needed` names that must be columns;
        `grouped` names of the only columns a star may stand for; `clauses`, where each name was
        first used; `types`, of the columns of its rows, a star standing for a table's; `changes`,
        whether another session must execute it to have the same tables.
    """
    found: list[dict[str, Any]] = []
    for tree in statements(sql):
        statement = Statement(database, strict)
        if isinstance(tree, Refused):
            found.append({"fault": str(tree)})
            break
        try:
            written = _Writer(statement).all(tree)
        except Refused as refused:
            # MySQL looks for the tables before anything else.
            tables = statement.tables if not str(refused).startswith("1064") else []
            found.append({"fault": str(refused), "tables": tables})
            break
        for item in written:
            item.setdefault("tables", statement.tables)
            if statement.needed:
                item["needed"] = statement.needed
            if statement.grouped is not None:
                item["grouped"] = statement.grouped
            found.append({**item, "clauses": statement.clauses})
    if not found:
        found.append({"fault": "1065 (42000): Query was empty"})
    return found


class _Writer(Tables):
    def all(self, node: exp.Expr) -> list[dict[str, Any]]:
        """One statement may be several of SQLite's."""
        if isinstance(node, exp.Drop) and len(node.args.get("tables") or []) > 1:
            return [self.write(_with(node, "tables", item)) for item in node.args["tables"]]
        if isinstance(node, exp.Alter) and len(node.args.get("actions") or []) > 1:
            return [self.write(_with(node, "actions", item)) for item in node.args["actions"]]
        return [self.write(node)]

    def write(self, node: exp.Expr) -> dict[str, Any]:
        if isinstance(node, exp.Query):
            sql, columns = self.queries.write(node)
            return {"sql": sql, "types": [[kind.kind, kind.scale, name] for name, kind in columns]}
        if isinstance(node, exp.Show):
            sql, tables = show(node, self.statement.database)
            return {"sql": sql, "tables": [table for table in tables if table]}
        if isinstance(node, exp.Describe):
            return self._describe(node)
        writers: tuple[tuple[type[exp.Expr], Any], ...] = (
            (exp.Insert, self._insert),
            (exp.Update, self._update),
            (exp.Delete, self._delete),
            (exp.Create, self._create),
            (exp.Drop, self._drop),
            (exp.Alter, self._alter),
            (exp.TruncateTable, self._truncate),
        )
        for kind, writer in writers:
            if isinstance(node, kind):
                self.statement.changing = True
                return {**writer(node), "changes": True}
        if isinstance(node, exp.Transaction):
            return {"transaction": "begin", "sql": "", "changes": True}
        if isinstance(node, (exp.Commit, exp.Rollback)):
            word = "commit" if isinstance(node, exp.Commit) else "rollback"
            return {"transaction": word, "sql": "", "changes": True}
        if isinstance(node, exp.Use):
            name = node.this.name if node.this is not None else ""
            if name not in (self.statement.database, "information_schema"):
                raise Refused(f"1049 (42000): Unknown database '{name}'")
            return {"sql": ""}
        if isinstance(node, exp.Set):
            return {"sql": ""}
        if isinstance(node, exp.Analyze):
            return {"sql": ""}
        if isinstance(node, exp.Command):
            return self._command(node)
        if isinstance(node, exp.Grant):
            raise Refused(DENIED.format(1142, "GRANT"))
        raise syntax(node.sql("mysql"))

    def _command(self, node: exp.Command) -> dict[str, Any]:
        word = str(node.this).upper()
        rest = node.expression
        rest = rest.name if isinstance(rest, exp.Expr) else str(rest or "")
        word = word.split()[0]
        if word in (
            "LOCK",
            "UNLOCK",
            "SET",
            "FLUSH",
            "ANALYZE",
            "OPTIMIZE",
            "SAVEPOINT",
            "RELEASE",
        ):
            return {"sql": ""}
        if word == "RENAME":
            return self._rename(rest)
        if word in ("SHOW", "EXPLAIN", "PREPARE", "EXECUTE", "CALL", "DO"):
            raise Refused(f"1235 (42000): This version of MySQL doesn't yet support '{word}'")
        if word in (
            "GRANT",
            "REVOKE",
            "LOAD",
            "KILL",
            "SHUTDOWN",
            "RESET",
            "CREATE",
            "DROP",
            "ALTER",
        ):
            raise Refused(DENIED.format(1142, word))
        raise syntax(f"{word} {rest}")

    def _rename(self, rest: str) -> dict[str, Any]:
        words = rest.replace("`", "").split()
        if len(words) == 4 and words[0].upper() == "TABLE" and words[2].upper() == "TO":
            sql = f"ALTER TABLE {quoted(words[1])} RENAME TO {quoted(words[3])}"
            return {"sql": sql, "tables": [words[1]], "changes": True}
        raise syntax(rest)

    def _describe(self, node: exp.Describe) -> dict[str, Any]:
        if not isinstance(node.this, exp.Table):
            raise Refused("1235 (42000): This version of MySQL doesn't yet support 'EXPLAIN'")
        return {"sql": describe(node.this.name), "tables": [self._target(node.this)]}

    # rows

    def _insert(self, node: exp.Insert) -> dict[str, Any]:
        name = self._target(node.this)
        self.statement.tables.append(name)
        columns = node.this.expressions if isinstance(node.this, exp.Schema) else []
        names = f" ({', '.join(quoted(item.name) for item in columns)})" if columns else ""
        source = node.expression
        conflict = node.args.get("conflict")
        word = "INSERT OR IGNORE" if node.args.get("ignore") else "INSERT"
        if conflict is not None:  # nothing has a key that could meet another's
            word = "INSERT OR IGNORE"
        head = f"{word} INTO {quoted(name)}{names}"
        if isinstance(source, exp.Values):
            rows = [self._row(row) for row in source.expressions]
            if rows == [[]]:
                return {"sql": f"INSERT INTO {quoted(name)} DEFAULT VALUES"}
            width = len(columns) or len(rows[0])
            for place, row in enumerate(rows):
                if len(row) != width:
                    raise _miscounted(place + 1)
            values = ", ".join(f"({', '.join(row)})" for row in rows)
            return {"sql": f"{head} VALUES {values}"}
        if source is None:
            raise syntax(node.sql("mysql"))
        sql, found = self.queries.write(source)
        if any(column == "*" for column, _ in found):
            return {"sql": f"{head} {sql}"}
        if columns and len(columns) != len(found):
            raise _miscounted(1)
        marks = [f"c{place}" for place in range(len(found))]
        items = [
            self.expressions.stored(Written(mark, kind))
            for mark, (_, kind) in zip(marks, found, strict=True)
        ]
        inner = f"WITH x({', '.join(marks)}) AS ({sql}) SELECT {', '.join(items)} FROM x"
        return {"sql": f"{head} {inner}"}

    def _row(self, row: exp.Expr) -> list[str]:
        items = row.expressions if isinstance(row, exp.Tuple) else [row]
        if len(items) == 1 and isinstance(items[0], exp.Anonymous) and items[0].name == "ROW":
            items = items[0].expressions
        scope = Scope()
        found = []
        for item in items:
            if _is_default(item):
                found.append("NULL")
            else:
                found.append(self.expressions.stored(self.expressions.write(item, scope)))
        return found

    def _update(self, node: exp.Update) -> dict[str, Any]:
        target = node.this
        name = self._target(target)
        alias = target.alias or name
        scope = Scope({alias.lower(): None})
        self.statement.tables.append(name)
        joins = [*(target.args.get("joins") or []), *(node.args.get("joins") or [])]
        condition: list[str] = []
        others = ""
        if joins:
            others, condition = self._joined(joins, scope)
        settings = []
        for item in node.expressions:
            if not isinstance(item, exp.EQ) or not isinstance(item.this, exp.Column):
                raise syntax(item.sql("mysql"))
            column = item.this.name
            if item.this.table and item.this.table.lower() != alias.lower():
                raise Refused("1235 (42000): This version of MySQL doesn't yet support 'UPDATE'")
            self.statement.clauses.setdefault(column.lower(), "field list")
            if _is_default(item.expression):
                value = "NULL"
            else:
                value = self.expressions.stored(self.expressions.write(item.expression, scope))
            settings.append(f"{quoted(column)} = {value}")
        where = self._where(node, scope, name, alias, condition)
        shown = f"{quoted(name)} AS {quoted(alias)}" if alias != name else quoted(name)
        return {"sql": f"UPDATE {shown} SET {', '.join(settings)}{others}{where}"}

    def _joined(self, joins: list[exp.Join], scope: Scope) -> tuple[str, list[str]]:
        sources, conditions = [], []
        for join in joins:
            if join.side or join.args.get("using"):
                raise Refused("1235 (42000): This version of MySQL doesn't yet support 'UPDATE'")
            sources.append(self.queries._source(join.this, scope))
            if join.args.get("on") is not None:
                scope.clause = "on clause"
                conditions.append(self.expressions.truth(join.args["on"], scope))
        scope.clause = "field list"
        return f" FROM {', '.join(sources)}", conditions

    def _where(
        self, node: exp.Expr, scope: Scope, name: str, alias: str, conditions: list[str]
    ) -> str:
        """WHERE, and ORDER BY with LIMIT, which SQLite has for queries only."""
        scope.clause = "where clause"
        if where := node.args.get("where"):
            conditions = [*conditions, self.expressions.truth(where.this, scope)]
        joined = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        if not (node.args.get("limit") or node.args.get("order")):
            return joined
        ending = self.queries._ending(node, scope)
        shown = f"{quoted(name)} AS {quoted(alias)}"
        return f" WHERE _rowid_ IN (SELECT _rowid_ FROM {shown}{joined}{ending})"

    def _delete(self, node: exp.Delete) -> dict[str, Any]:
        if node.args.get("tables") or node.args.get("using") or node.args.get("joins"):
            raise Refused(
                "1235 (42000): This version of MySQL doesn't yet support 'DELETE ... JOIN'"
            )
        name = self._target(node.this)
        self.statement.tables.append(name)
        alias = node.this.alias or name
        where = self._where(node, Scope({alias.lower(): None}), name, alias, [])
        shown = f"{quoted(name)} AS {quoted(alias)}" if alias != name else quoted(name)
        return {"sql": f"DELETE FROM {shown}{where}"}

    def _truncate(self, node: exp.TruncateTable) -> dict[str, Any]:
        name = self._target(node.expressions[0])
        return {"sql": f"DELETE FROM {quoted(name)}", "tables": [name]}

    # tables


def _is_default(node: exp.Expr) -> bool:
    if isinstance(node, exp.Column) and not node.table:
        return node.name.upper() == "DEFAULT" and not node.this.args.get("quoted")
    return isinstance(node, exp.Var) and node.name.upper() == "DEFAULT"


def _miscounted(row: int) -> Refused:
    return Refused(f"1136 (21S01): Column count doesn't match value count at row {row}")


def _with(node: exp.Expr, name: str, item: exp.Expr) -> exp.Expr:
    one = node.copy()
    one.set(name, [item.copy()])
    return one
