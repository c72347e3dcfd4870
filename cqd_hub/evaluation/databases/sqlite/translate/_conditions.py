"""Conditions: comparisons by MySQL's rules of types."""

from __future__ import annotations

from sqlglot import exp

from ._contexts import Contexts, Scope
from ._types import (
    BINARY,
    INT,
    TEXT,
    Refused,
    Written,
    syntax,
)

COMPARED: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<=",
    exp.NullSafeEQ: "IS",
}  # fmt: skip


class Conditions(Contexts):
    """See `Expressions`."""

    def _connected(self, node: exp.Expr, scope: Scope) -> Written:
        parts: list[str] = []
        kind, queue = type(node), [node]
        while queue:
            item = queue.pop()
            if type(item) is kind:
                queue += [item.expression, item.this]
            else:
                parts.append(self.truth(item, scope))
        word = " AND " if kind is exp.And else " OR "
        return Written(f"({word.join(parts)})", INT)

    def _xor(self, node: exp.Xor, scope: Scope) -> Written:
        one, other = self.truth(node.this, scope), self.truth(node.expression, scope)
        return Written(f"my_xor({one}, {other})", INT)

    def _compared(self, node: exp.Binary, scope: Scope) -> Written:
        sign = COMPARED[type(node)]
        left, right = node.this, node.expression
        if isinstance(right, (exp.Any, exp.All)):
            return self._quantified(node, scope)
        if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):
            pairs = zip(left.expressions, right.expressions, strict=False)
            equal = " AND ".join(
                self.compare(self.write(a, scope), "=", self.write(b, scope)) for a, b in pairs
            )
            if sign not in ("=", "<>"):
                raise syntax(node.sql("mysql"))
            return Written(f"({equal})" if sign == "=" else f"(NOT ({equal}))", INT)
        one, other = self.write(left, scope), self.write(right, scope)
        return Written(f"({self.compare(one, sign, other)})", INT)

    def _quantified(self, node: exp.Binary, scope: Scope) -> Written:
        sign, every = COMPARED[type(node)], isinstance(node.expression, exp.All)
        inner = node.expression.this
        inner = inner.this if isinstance(inner, (exp.Subquery, exp.Paren)) else inner
        if (sign, every) not in (("=", False), ("<>", True)):
            raise Refused("1235 (42000): This version of MySQL doesn't yet support 'ANY/ALL'")
        found = self._in(
            exp.In(this=node.this.copy(), query=exp.Subquery(this=inner.copy())), scope
        )
        return Written(f"(NOT {found.sql})" if every else found.sql, INT)

    def _between(self, node: exp.Between, scope: Scope) -> Written:
        parts = [self.write(node.args[name], scope) for name in ("this", "low", "high")]
        low = self.compare(parts[0], ">=", parts[1])
        return Written(f"({low} AND {self.compare(parts[0], '<=', parts[2])})", INT)

    def _in(self, node: exp.In, scope: Scope) -> Written:
        if query := node.args.get("query"):
            return self._in_query(node, query, scope)
        if isinstance(node.this, exp.Tuple):
            equal = [
                exp.EQ(this=node.this.copy(), expression=item.copy()) for item in node.expressions
            ]
            return Written(f"({' OR '.join(self.write(item, scope).sql for item in equal)})", INT)
        one = self.write(node.this, scope)
        others = [self.write(item, scope) for item in node.expressions]
        left, right, collation = self.operands(one, others)
        return Written(f"({left}{collation} IN ({', '.join(right)}))", INT)

    def _in_query(self, node: exp.In, query: exp.Expr, scope: Scope) -> Written:
        inner = query.this if isinstance(query, exp.Subquery) else query
        if inner.args.get("limit"):
            raise Refused(
                "1235 (42000): This version of MySQL doesn't yet support "
                "'LIMIT & IN/ALL/ANY/SOME subquery'"
            )
        sql, columns = self._query(inner, scope)
        if isinstance(node.this, exp.Tuple):
            left = ", ".join(
                self.collated(self.write(item, scope)) for item in node.this.expressions
            )
            return Written(f"(({left}) IN ({sql}))", INT)
        if len(columns) != 1:
            raise Refused("1241 (21000): Operand should contain 1 column(s)")
        one, kind = self.write(node.this, scope), columns[0][1]
        if one.type.numeric != kind.numeric and "null" not in (one.type.kind, kind.kind):
            names = f"SELECT my_num(x) FROM (SELECT NULL AS x WHERE 0 UNION ALL {sql_in(sql)})"
            return Written(f"({self.number(one)} IN ({names}))", INT)
        return Written(f"({self.collated(one)} IN ({sql}))", INT)

    def _like(self, node: exp.Expr, scope: Scope) -> Written:
        escape = ""
        if isinstance(node, exp.Escape):
            escape = f", {self.write(node.expression, scope).sql}"
            node = node.this
            if node.args.get("negate"):
                found = self._like_with(node, escape, scope)
                return Written(f"(NOT {found.sql})", INT)
        return self._like_with(node, escape, scope)

    def _like_with(self, node: exp.Expr, escape: str, scope: Scope) -> Written:
        one, other = self.write(node.this, scope), self.write(node.expression, scope)
        binary = BINARY in (one.type, other.type)
        name = "my_like_binary" if binary else "my_like"
        return Written(f"{name}({self.text(one)}, {self.text(other)}{escape})", INT)

    def _regexp(self, node: exp.RegexpLike, scope: Scope) -> Written:
        one, other = self.write(node.this, scope), self.write(node.expression, scope)
        return Written(f"my_regexp({self.text(one)}, {self.text(other)})", INT)

    def _is(self, node: exp.Is, scope: Scope) -> Written:
        if isinstance(node.expression, exp.Null):
            return Written(f"({self.write(node.this, scope).sql} IS NULL)", INT)
        if isinstance(node.expression, exp.Boolean):
            word = "TRUE" if node.expression.this else "FALSE"
            return Written(f"({self.truth(node.this, scope)} IS {word})", INT)
        raise syntax(node.expression.sql("mysql"))

    def _exists(self, node: exp.Exists, scope: Scope) -> Written:
        inner = node.this.this if isinstance(node.this, exp.Subquery) else node.this
        return Written(f"EXISTS({self._query(inner, scope)[0]})", INT)

    def _subquery(self, node: exp.Subquery, scope: Scope) -> Written:
        sql, columns = self._query(node.this, scope)
        if len(columns) > 1:
            raise Refused("1241 (21000): Operand should contain 1 column(s)")
        return Written(f"({sql})", columns[0][1] if columns else TEXT)


def sql_in(sql: str) -> str:
    """A query as one arm of a UNION."""
    return f"SELECT * FROM ({sql})"
