"""Aggregates and windows."""

from __future__ import annotations

from sqlglot import exp

from ._calls import Calls
from ._contexts import Scope
from ._types import (
    DOUBLE,
    INT,
    TEXT,
    Written,
    decimal,
    quoted,
)


class Aggregates(Calls):
    """See `Expressions`."""

    def _count(self, node: exp.Count, scope: Scope) -> Written:
        if isinstance(node.this, exp.Star) or node.this is None:
            return Written("COUNT(*)", INT)
        if isinstance(node.this, exp.Distinct):
            found = [self.write(item, scope) for item in node.this.expressions]
            if len(found) > 1:
                return Written(f"COUNT(DISTINCT my_key({', '.join(w.sql for w in found)}))", INT)
            return Written(f"COUNT(DISTINCT {self.collated(found[0])})", INT)
        return Written(f"COUNT({self.write(node.this, scope).sql})", INT)

    def _sum(self, node: exp.Sum, scope: Scope) -> Written:
        word, found = self._distinct(node.this, scope)
        exact = found.type.kind in ("int", "decimal")
        return Written(
            f"SUM({word}{self.number(found)})", decimal(found.type.scale) if exact else DOUBLE
        )

    def _avg(self, node: exp.Avg, scope: Scope) -> Written:
        word, found = self._distinct(node.this, scope)
        exact = found.type.kind in ("int", "decimal")
        return Written(
            f"AVG({word}{self.number(found)})", decimal(found.type.scale + 4) if exact else DOUBLE
        )

    def _distinct(self, node: exp.Expr, scope: Scope) -> tuple[str, Written]:
        if isinstance(node, exp.Distinct):
            return "DISTINCT ", self.write(node.expressions[0], scope)
        return "", self.write(node, scope)

    def _edge(self, word: str, node: exp.Min | exp.Max, scope: Scope) -> Written:
        _, found = self._distinct(node.this, scope)
        return Written(f"{word}({self.collated(found)})", found.type)

    def _group_concat(self, node: exp.GroupConcat, scope: Scope) -> Written:
        inner, keys, distinct = node.this, [], 0
        if isinstance(inner, exp.Order):
            for item in inner.expressions:
                key = self.write(item.this, scope)
                keys += [key.sql, str(int(bool(item.args.get("desc"))))]
            inner = inner.this
        if isinstance(inner, exp.Distinct):
            distinct, values = 1, inner.expressions
        else:
            values = [inner]
        if len(values) > 1:
            value = self.call("CONCAT", values, scope).sql
        else:
            value = self.text(self.write(values[0], scope))
        mark = node.args.get("separator")
        shown = self.write(mark, scope).sql if mark is not None else "','"
        arguments = ", ".join([value, shown, str(distinct), "1024", *keys])
        return Written(f"my_group_concat({arguments})", TEXT)

    def _window(self, node: exp.Window, scope: Scope) -> Written:
        found = self.write(node.this, scope)
        parts = []
        if partition := node.args.get("partition_by"):
            keys = ", ".join(self.collated(self.write(item, scope)) for item in partition)
            parts.append(f"PARTITION BY {keys}")
        if order := node.args.get("order"):
            parts.append(f"ORDER BY {self.order(order.expressions, scope)}")
        if spec := node.args.get("spec"):
            begin = f"{_edge_of(spec, 'start', self, scope)}"
            end = f"{_edge_of(spec, 'end', self, scope)}"
            parts.append(f"{spec.args['kind']} BETWEEN {begin} AND {end}")
        if node.args.get("alias"):
            return Written(f"{found.sql} OVER {quoted(node.args['alias'].name)}", found.type)
        return Written(f"{found.sql} OVER ({' '.join(parts)})", found.type)


def _edge_of(spec: exp.Expr, name: str, writer: Calls, scope: Scope) -> str:
    edge, side = spec.args.get(name), spec.args.get(f"{name}_side")
    if edge is None:
        return "CURRENT ROW"
    if isinstance(edge, exp.Expr):
        edge = writer.write(edge, scope).sql
    return f"{edge} {side}" if side else str(edge)
