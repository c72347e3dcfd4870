"""Queries: SELECT, UNION, WITH, and what MySQL's ONLY_FULL_GROUP_BY refuses."""

from __future__ import annotations

from sqlglot import exp

from ._catalog import information_schema
from ._contexts import Columns, Scope, Statement
from ._expressions import Expressions
from ._grouping import Grouping, aggregates, ordinal
from ._tokens import PREFIX
from ._types import INT, TEXT, Refused, Type, Written, joined, quoted, syntax

Named = list[tuple[str, Type]]
STAR = "*"  # stands for a table's columns in `Named`
_REFUSED = ("connect", "qualify", "sample", "cluster", "distribute", "sort", "pivots", "laterals",
            "match", "settings", "format", "prewhere", "into")  # fmt: skip


class Queries(Grouping):
    """Writes queries of one statement."""

    def __init__(self, statement: Statement) -> None:
        super().__init__(statement)
        self.expressions = Expressions(statement, self.write)
        self._common: list[Columns] = []  # of WITH, by name: what is in sight

    def write(
        self, node: exp.Expr, outer: Scope | None = None, recursive: bool = False
    ) -> tuple[str, Named]:
        """Return the query and its columns' names and types.

        Args:
            recursive: It is the body of WITH RECURSIVE: SQLite wants its arms as they are.

        Raises:
            Refused: MySQL's error for it.
        """
        known = len(self._common)
        head = self._with(node, outer)
        if isinstance(node, exp.Select):
            sql, columns = self._select(node, outer)
        elif isinstance(node, exp.SetOperation):
            sql, columns = self._union(node, outer, recursive)
        elif isinstance(node, (exp.Subquery, exp.Paren)):
            sql, columns = self._enclosed(node, outer)
        elif isinstance(node, exp.Values):
            sql, columns = self._values(node, outer)
        else:
            raise syntax(node.sql("mysql"))
        del self._common[known:]
        return head + sql, columns

    def _with(self, node: exp.Expr, outer: Scope | None) -> str:
        clause = node.args.get("with_") or node.args.get("with")
        if clause is None:
            return ""
        parts = []
        recursive = bool(clause.args.get("recursive"))
        for common in clause.expressions:
            alias = common.args["alias"]
            names = [column.name for column in alias.args.get("columns") or []]
            if recursive:  # its own columns are in sight while it is written
                inner = (
                    common.this.this if isinstance(common.this, exp.SetOperation) else common.this
                )
                seed = self.write(inner, outer)[1]
                self._common.append({f"{alias.name.lower()}\n": INT, **_renamed(seed, names)})
            sql, columns = self.write(common.this, outer, recursive)
            if recursive:
                self._common.pop()
            shown = f"({', '.join(map(quoted, names))})" if names else ""
            parts.append(f"{quoted(alias.name)}{shown} AS ({sql})")
            self._common.append({f"{alias.name.lower()}\n": INT, **_renamed(columns, names)})
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(parts)} "

    # parts of SELECT

    def _select(self, node: exp.Select, outer: Scope | None) -> tuple[str, Named]:
        for name in _REFUSED:
            if node.args.get(name):
                raise syntax(node.sql("mysql"))
        writer, scope = self.expressions, Scope(outer=outer)
        origin = self._from(node, scope)
        nested = outer is not None
        scope.clause = "field list"
        columns: Named = []
        items: list[str] = []
        distinct = node.args.get("distinct") is not None
        written: list[Written | None] = []
        for item in node.expressions:
            sql, found = self._projection(item, scope, columns, nested, distinct)
            items.append(sql)
            written.append(found)
        scope.aliases = {
            item.alias.lower(): kind.type
            for item, kind in zip(node.expressions, written, strict=True)
            if isinstance(item, exp.Alias) and kind is not None
        }
        if not items:
            raise syntax("")
        where, having = node.args.get("where"), node.args.get("having")
        group = node.args.get("group")
        conditions = []
        if where is not None:
            scope.clause = "where clause"
            self._no_aggregate(where.this)
            conditions.append(writer.truth(where.this, scope))
            self._not_aliases(where.this, scope)
        grouping = self._group(group, node, scope, written) if group is not None else ""
        aggregated = any(aggregates(item) for item in node.expressions)
        self._grouped_only(node, scope, aggregated)
        tail = ""
        if having is not None:
            scope.clause = "having clause"
            self._having(node, having)
            condition = writer.truth(having.this, scope)
            if group is None and not aggregated and not aggregates(having.this):
                conditions.append(condition)
            else:
                tail = f" HAVING {condition}"
        sql = f"SELECT {'DISTINCT ' if distinct else ''}{', '.join(items)}{origin}"
        if conditions:
            sql += f" WHERE {' AND '.join(conditions)}"
        sql += grouping + tail + self._windows(node, scope) + self._ending(node, scope, written)
        return sql, columns

    def _projection(
        self, item: exp.Expr, scope: Scope, columns: Named, nested: bool, distinct: bool
    ) -> tuple[str, Written | None]:
        if isinstance(item, exp.Star):
            if not scope.sources:
                raise Refused("1096 (HY000): No tables used")
            for source in scope.sources.values():
                columns += list(source.items()) if source is not None else [(STAR, TEXT)]
            return "*", None
        if isinstance(item, exp.Column) and isinstance(item.this, exp.Star):
            name = item.table
            known = scope.sources.get(name.lower())
            if name.lower() not in scope.sources:
                raise Refused(f"1051 (42S02): Unknown table '{name}'")
            columns += list(known.items()) if known is not None else [(STAR, TEXT)]
            return f"{quoted(name)}.*", None
        inner = item.this if isinstance(item, exp.Alias) else item
        if isinstance(inner, exp.Aliases):
            raise syntax(inner.sql("mysql"))
        found = self.expressions.write(inner, scope)
        name = item.alias if isinstance(item, exp.Alias) else _shown(inner)
        columns.append((name.lower(), found.type))
        sql = self.expressions.collated(found) if distinct and not found.bare else found.sql
        if isinstance(item, exp.Alias) or (nested and not isinstance(inner, exp.Column)):
            sql += f" AS {quoted(name)}"
        return sql, found

    def _from(self, node: exp.Select, scope: Scope) -> str:
        origin = node.args.get("from_") or node.args.get("from")
        if origin is None:
            return ""
        first = self._source(origin.this, scope)
        if not first:
            return ""
        parts = [f" FROM {first}"]
        for join in [*(origin.this.args.get("joins") or []), *(node.args.get("joins") or [])]:
            parts.append(self._join(join, scope))
        return "".join(parts)

    def _join(self, join: exp.Join, scope: Scope) -> str:
        side, kind = (join.side or "").upper(), (join.kind or "").upper()
        if side == "FULL" or (kind in ("SEMI", "ANTI", "OUTER") and not side):
            raise syntax(join.sql("mysql"))
        natural = "NATURAL " if (join.method or "").upper() == "NATURAL" else ""
        word = f" {natural}{side + ' ' if side else ''}JOIN "
        sql = word + self._source(join.this, scope)
        if using := join.args.get("using"):
            return f"{sql} USING ({', '.join(quoted(item.name) for item in using)})"
        condition = join.args.get("on")
        if condition is not None:
            scope.clause = "on clause"
            sql += f" ON {self.expressions.truth(condition, scope)}"
        elif side:
            raise syntax("")
        return sql

    def _source(self, node: exp.Expr, scope: Scope) -> str:
        alias = node.alias
        if isinstance(node, exp.Table):
            return self._table(node, scope)
        if isinstance(node, exp.Subquery):
            if isinstance(node.this, exp.Table):  # parentheses around tables
                inner = self._source(node.this, scope)
                joins = "".join(self._join(j, scope) for j in node.this.args.get("joins") or [])
                return f"({inner}{joins})"
            if not alias:
                raise Refused("1248 (42000): Every derived table must have its own alias")
            # A derived table does not see its neighbours.
            sql, columns = self.write(node.this, Scope(outer=scope.outer))
            names = [item.name for item in _alias_columns(node)]
            self._add(scope, alias, _renamed(columns, names))
            if names:
                marks = ", ".join(map(quoted, names))
                return f"(WITH x({marks}) AS ({sql}) SELECT * FROM x) AS {quoted(alias)}"
            return f"({sql}) AS {quoted(alias)}"
        if isinstance(node, exp.Values):
            raise syntax(node.sql("mysql"))
        raise syntax(node.sql("mysql"))

    def _table(self, node: exp.Table, scope: Scope) -> str:
        if not isinstance(node.this, exp.Identifier):
            raise syntax(node.sql("mysql"))
        name, database = node.name, node.text("db")
        alias = node.alias or name
        if not database:
            if name.lower() == "dual":
                return ""
            for common in reversed(self._common):
                if f"{name.lower()}\n" in common:
                    columns = {key: kind for key, kind in common.items() if not key.endswith("\n")}
                    self._add(scope, alias, columns)
                    return f"{quoted(name)} AS {quoted(alias)}"
        elif database.lower() == "information_schema":
            self._add(scope, alias, {})
            return f"{information_schema(name, self.statement.database)} AS {quoted(alias)}"
        elif database != self.statement.database:
            raise Refused(f"1049 (42000): Unknown database '{database}'")
        self._add(scope, alias, None)
        if name not in self.statement.tables:
            self.statement.tables.append(name)
        return f"{quoted(name)} AS {quoted(alias)}" if alias != name else quoted(name)

    def _add(self, scope: Scope, alias: str, columns: Columns | None) -> None:
        if alias.lower() in scope.sources:
            raise Refused(f"1066 (42000): Not unique table/alias: '{alias}'")
        scope.sources[alias.lower()] = columns

    def _group(
        self, group: exp.Group, node: exp.Select, scope: Scope, written: list[Written | None]
    ) -> str:
        if group.args.get("rollup") or group.args.get("cube") or group.args.get("grouping_sets"):
            raise Refused("1235 (42000): This version of MySQL doesn't yet support 'ROLLUP'")
        scope.clause = "group statement"
        keys = []
        for item in group.expressions:
            place = ordinal(item)
            if place is not None:
                if not 1 <= place <= len(written):
                    raise Refused(f"1054 (42S22): Unknown column '{place}' in 'group statement'")
                found = written[place - 1]
                if found is None:
                    raise syntax("*")
            else:
                self._no_aggregate(item)
                found = self.expressions.write(item, scope)
            keys.append(self.expressions.collated(found))
        return f" GROUP BY {', '.join(keys)}"

    def _windows(self, node: exp.Select, scope: Scope) -> str:
        found = []
        for window in node.args.get("windows") or []:
            name = window.this.name
            shown = self.expressions.write(
                exp.Window(this=exp.Literal.number(0), **_window_parts(window)), scope
            ).sql
            found.append(f"{quoted(name)} AS {shown.partition(' OVER ')[2]}")
        return f" WINDOW {', '.join(found)}" if found else ""

    def _ending(
        self, node: exp.Expr, scope: Scope, written: list[Written | None] | None = None
    ) -> str:
        """ORDER BY and LIMIT."""
        sql = ""
        if order := node.args.get("order"):
            scope.clause = "order clause"
            for item in order.expressions:
                place = ordinal(item.this if isinstance(item, exp.Ordered) else item)
                stars = written is None or None in written
                if place is not None and not stars and not 1 <= place <= len(written or []):
                    raise Refused(f"1054 (42S22): Unknown column '{place}' in 'order clause'")
            sql += f" ORDER BY {self.expressions.order(order.expressions, scope)}"
        limit, offset = node.args.get("limit"), node.args.get("offset")
        if limit is not None:
            sql += f" LIMIT {_count(limit.expression)}"
            offset = offset or limit.args.get("offset")
        if offset is not None:
            shown = offset.expression if isinstance(offset, exp.Offset) else offset
            sql += f" OFFSET {_count(shown)}"
        return sql

    def _enclosed(self, node: exp.Expr, outer: Scope | None) -> tuple[str, Named]:
        sql, columns = self.write(node.this, outer)
        ending = self._ending(node, Scope(outer=outer))
        return (f"SELECT * FROM ({sql}){ending}" if ending else sql), columns

    def _union(
        self, node: exp.SetOperation, outer: Scope | None, recursive: bool
    ) -> tuple[str, Named]:
        # As deep as it is long: gather the arms of equal operators first.
        arms = [node.expression]
        kind, every = type(node), not node.args.get("distinct")
        first = node.this
        while (
            type(first) is kind
            and (not first.args.get("distinct")) == every
            and not any(
                first.args.get(name) for name in ("order", "limit", "offset", "with", "with_")
            )
        ):
            arms.append(first.expression)
            first = first.this
        arms.append(first)
        inside = outer or Scope()
        found = [self.write(arm, inside) for arm in reversed(arms)]
        widths = {len(columns) for _, columns in found if not _starred(columns)}
        if len(widths) > 1:
            raise Refused(
                "1222 (21000): The used SELECT statements have a different number of columns"
            )
        word = {exp.Union: "UNION ALL", exp.Except: "EXCEPT", exp.Intersect: "INTERSECT"}[kind]
        columns = found[0][1]
        if recursive:
            word = "UNION ALL" if every else "UNION"
            return f" {word} ".join(sql for sql, _ in found), columns
        if not any(_starred(item) for _, item in found):
            columns = [
                (name, joined(item[place][1] for _, item in found))
                for place, (name, _) in enumerate(columns)
            ]
            found = [(self._as_text(sql, item, columns), item) for sql, item in found]
        sql = f" {word} ".join(f"SELECT * FROM ({sql})" for sql, _ in found)
        if not every and kind is exp.Union:
            sql = f"SELECT DISTINCT * FROM ({sql})"
        scope = Scope({"": dict(columns)}, outer)
        ending = self._ending(node, scope)
        return (f"SELECT * FROM ({sql}){ending}" if ending else sql), columns

    def _as_text(self, sql: str, columns: Named, wanted: Named) -> str:
        """An arm whose numbers meet another's text."""
        if not any(
            kind.numeric and want == TEXT
            for (_, kind), (_, want) in zip(columns, wanted, strict=True)
        ):
            return sql
        marks = [f"c{place}" for place in range(len(columns))]
        items = [
            self.expressions.stored(Written(mark, kind)) if want == TEXT else mark
            for mark, (_, kind), (_, want) in zip(marks, columns, wanted, strict=True)
        ]
        items = [f"{item} AS {quoted(want[0])}" for item, want in zip(items, wanted, strict=True)]
        return f"WITH x({', '.join(marks)}) AS ({sql}) SELECT {', '.join(items)} FROM x"

    def _values(self, node: exp.Values, outer: Scope | None) -> tuple[str, Named]:
        rows, kinds = [], []
        for row in node.expressions:
            items = row.expressions if isinstance(row, exp.Tuple) else [row]
            if len(items) == 1 and isinstance(items[0], exp.Anonymous):
                items = items[0].expressions  # ROW(...)
            found = [self.expressions.write(item, outer or Scope()) for item in items]
            rows.append(f"({', '.join(item.sql for item in found)})")
            kinds = [item.type for item in found]
        return f"VALUES {', '.join(rows)}", [
            (f"column_{place}", kind) for place, kind in enumerate(kinds)
        ]

    # what MySQL refuses


def _renamed(columns: Named, names: list[str]) -> Columns:
    if names and len(names) == len(columns):
        return {name.lower(): kind for name, (_, kind) in zip(names, columns, strict=True)}
    return {name: kind for name, kind in columns if name != STAR}


def _starred(columns: Named) -> bool:
    return any(name == STAR for name, _ in columns)


def _alias_columns(node: exp.Expr) -> list[exp.Expr]:
    alias = node.args.get("alias")
    return (alias.args.get("columns") or []) if alias is not None else []


def _shown(node: exp.Expr) -> str:
    """The name MySQL gives a column that has none."""
    if isinstance(node, exp.Column):
        return node.name
    return node.sql("mysql").replace(PREFIX.upper(), "").replace(PREFIX, "")


def _count(node: exp.Expr) -> str:
    if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
        return node.this
    raise syntax(node.sql("mysql"))


def _window_parts(window: exp.Expr) -> dict[str, exp.Expr]:
    return {
        name: value
        for name in ("partition_by", "order", "spec")
        if (value := window.args.get(name)) is not None
    }
