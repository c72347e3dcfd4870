"""What an expression is where it stands: a condition, a number, text, an operand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from ._types import (
    DATE,
    TEXT,
    TIME,
    Type,
    Written,
    joined,
    string,
)

Columns = dict[str, Type]
_AFTER = ("group statement", "having clause", "order clause")  # see the select list


@dataclass
class Scope:
    """Where a name may come from.

    Args:
        sources: Alias of each table (columns not known: None) or derived table.
        outer: The query around, whose columns are in sight too.
        aliases: The select list's, once it is written.
        clause: What is being written, in MySQL's words.
    """

    sources: dict[str, Columns | None] = field(default_factory=dict)
    outer: Scope | None = None
    aliases: Columns = field(default_factory=dict)
    clause: str = "field list"

    def type_of(self, table: str, name: str) -> Type:
        scope: Scope | None = self
        while scope is not None:
            if table:
                if table in scope.sources:
                    return (scope.sources[table] or {}).get(name, TEXT)
            else:
                for columns in scope.sources.values():
                    if columns and name in columns:
                        return columns[name]
                if scope.clause in _AFTER and name in scope.aliases:
                    return scope.aliases[name]
            scope = scope.outer
        return TEXT


@dataclass
class Statement:
    """What is gathered while one statement is written; see `translate`."""

    database: str
    strict: bool
    changing: bool = False
    tables: list[str] = field(default_factory=list)
    clauses: dict[str, str] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    grouped: list[str] | None = None


class Contexts:
    """Writes values for where they stand; `query` is the writer of subqueries."""

    def __init__(
        self, statement: Statement, query: Callable[[exp.Expr, Scope], tuple[str, Any]]
    ) -> None:
        self.statement, self._query = statement, query

    def write(self, node: exp.Expr, scope: Scope) -> Written:
        """Write one expression.

        Raises:
            Refused: MySQL's error for it.
        """
        raise NotImplementedError

    def truth(self, node: exp.Expr, scope: Scope) -> str:
        """A condition."""
        found = self.write(node, scope)
        return self.number(found) if not found.type.numeric else found.sql

    def number(self, found: Written) -> str:
        """A value in a numeric context."""
        if found.type.numeric or found.type.kind == "null":
            return found.sql
        strict = self.statement.changing and self.statement.strict
        return f"my_{'snum' if strict else 'num'}({found.sql})"

    def text(self, found: Written) -> str:
        """A value in a text context; integers and doubles are converted where they are used."""
        if found.type.kind == "decimal":
            return f"my_str({found.sql}, {found.type.scale})"
        return found.sql

    def stored(self, found: Written) -> str:
        """A value to put into a TEXT column."""
        if found.literal is not None and found.type.numeric:
            word = found.literal.lstrip("0") or "0"
            word = f"0{word}" if word.startswith(".") else word
            return string(word) if found.type.kind != "double" else f"my_str({found.sql})"
        if found.type.kind == "decimal":
            return f"my_str({found.sql}, {found.type.scale})"
        return f"my_str({found.sql})" if found.type.numeric else found.sql

    def collated(self, found: Written) -> str:
        """A value to sort, group or compare by."""
        if found.type.kind == "binary":
            return f"{found.sql} COLLATE BINARY"
        return f"{found.sql} COLLATE mysql" if found.type.kind == "text" else found.sql

    def compare(self, one: Written, sign: str, other: Written) -> str:
        """A comparison by MySQL's rules of types."""
        left, right, collation = self.operands(one, [other])
        return f"{left}{collation} {sign} {right[0]}"

    def operands(self, one: Written, others: list[Written]) -> tuple[str, list[str], str]:
        """The operands of a comparison as it needs them, and the collation of the first."""
        kinds = [item.type for item in (one, *others) if item.type.kind != "null"]
        if any(kind.numeric for kind in kinds):
            return self.number(one), [self.number(other) for other in others], ""
        temporal = [kind for kind in kinds if kind.temporal]
        if temporal:
            whole = all(kind in (DATE, TEXT) for kind in kinds)
            if TIME in temporal:
                return one.sql, [other.sql for other in others], ""
            function = "my_date" if whole and not any(_timed(w) for w in (one, *others)) else None

            def moment(item: Written) -> str:
                wanted = function or "my_datetime"
                if item.type.kind == wanted[3:] or item.type.kind == "null":
                    return item.sql
                return f"{wanted}({item.sql})"

            return moment(one), [moment(other) for other in others], ""
        binary = any(kind.kind == "binary" for kind in kinds)
        return (
            one.sql,
            [other.sql for other in others],
            f" COLLATE {'BINARY' if binary else 'mysql'}",
        )

    def alike(self, found: Written, kind: Type) -> str:
        """A value that may become another type's (a branch of CASE)."""
        if kind.kind == "text" and found.type.numeric:
            return self.stored(found)
        return found.sql

    def chosen(self, values: Iterable[Written]) -> tuple[list[str], Type]:
        found = list(values)
        kind = joined(item.type for item in found)
        return [self.alike(item, kind) for item in found], kind

    def order(self, items: list[exp.Expr], scope: Scope) -> str:
        """The keys of ORDER BY."""
        found = []
        for item in items:
            descending = isinstance(item, exp.Ordered) and item.args.get("desc")
            key = item.this if isinstance(item, exp.Ordered) else item
            sql = self.collated(self.write(key, scope))
            if isinstance(key, exp.Literal):  # a place in the select list
                sql += " COLLATE mysql"
            found.append(f"{sql}{' DESC' if descending else ''}")
        return ", ".join(found)


def _timed(found: Written) -> bool:
    return found.type.kind == "text" and ":" in (found.literal or "")
