"""Calls of functions."""

from __future__ import annotations

from sqlglot import exp

from . import _functions as functions
from ._contexts import Contexts, Scope
from ._tokens import PREFIX
from ._types import (
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    NULL,
    TEXT,
    Refused,
    Written,
    syntax,
    text_literal,
)

PRESENT: dict[type[exp.Expr], str] = {
    exp.CurrentDate: "CURDATE", exp.CurrentTimestamp: "NOW", exp.CurrentTime: "CURTIME",
}  # fmt: skip


_UNITS = frozenset(
    ("microsecond", "second", "minute", "hour", "day", "week", "month", "quarter", "year")
)


class Calls(Contexts):
    """See `Expressions`."""

    def call(self, name: str, nodes: list[exp.Expr], scope: Scope) -> Written:
        """A call of one of `functions.FUNCTIONS`."""
        function = functions.FUNCTIONS[name]
        if not function.least <= len(nodes) <= function.most:
            raise wrong_count(name)
        found = [self.write(node, scope) for node in nodes]
        arguments = [self.text(item) if function.texts else item.sql for item in found]
        kind = function.type(found) if found else function.type([Written("NULL", NULL)])
        if function.ours in ("round", "format"):
            exact = int(bool(found) and found[0].type.kind in ("decimal", "int"))
            arguments = [*arguments[:2], *["0"] * (2 - len(arguments)), str(exact)]
        return Written(f"my_{function.ours}({', '.join(arguments)})", kind)

    def _present(self, node: exp.Expr, scope: Scope) -> Written:
        return self.call(PRESENT[type(node)], [], scope)

    def _named(self, node: exp.Anonymous, scope: Scope) -> Written:
        name = node.name.upper()
        if name.startswith(PREFIX.upper()):
            name = name[len(PREFIX) :]
            if name in functions.FUNCTIONS:
                return self.call(name, node.expressions, scope)
            return self._special(name, node.expressions, scope)
        raise Refused(
            f"1305 (42000): FUNCTION {self.statement.database}.{node.name} does not exist"
        )

    def _special(self, name: str, nodes: list[exp.Expr], scope: Scope) -> Written:
        count = len(nodes)

        def exactly(*allowed: int) -> None:
            if count not in allowed:
                raise wrong_count(name)

        if name == "IF":
            exactly(3)
            branches, kind = self.chosen(self.write(node, scope) for node in nodes[1:])
            condition = self.truth(nodes[0], scope)
            return Written(f"iif({condition}, {branches[0]}, {branches[1]})", kind)
        if name in ("IFNULL", "COALESCE"):
            exactly(*((2,) if name == "IFNULL" else range(1, functions.MANY)))
            values, kind = self.chosen(self.write(node, scope) for node in nodes)
            return Written(f"coalesce({', '.join([*values, 'NULL'])})", kind)
        if name == "NULLIF":
            exactly(2)
            one, other = (self.write(node, scope) for node in nodes)
            equal = self.compare(one, "=", other)
            return Written(f"iif({equal}, NULL, {one.sql})", one.type)
        if name == "ISNULL":
            exactly(1)
            return Written(f"({self.write(nodes[0], scope).sql} IS NULL)", INT)
        if name == "MOD":
            exactly(2)
            return self._arithmetic(
                exp.Mod(this=nodes[0].copy(), expression=nodes[1].copy()), scope
            )
        if name in ("DATE_ADD", "ADDDATE", "DATE_SUB", "SUBDATE"):
            exactly(2)
            step = nodes[1]
            if not isinstance(step, exp.Interval):
                step = exp.Interval(this=step.copy(), unit=exp.var("DAY"))
            sign = "+" if "ADD" in name else "-"
            return self._shifted(self.write(nodes[0], scope), step, sign, scope)
        if name in ("TIMESTAMPADD", "TIMESTAMPDIFF"):
            exactly(3)
            unit = nodes[0].name.lower()
            if unit not in _UNITS:
                raise syntax(nodes[0].name)
            one, other = (self.write(node, scope) for node in nodes[1:])
            if name == "TIMESTAMPDIFF":
                return Written(f"my_timestampdiff('{unit}', {one.sql}, {other.sql})", INT)
            return Written(f"my_date_add({other.sql}, {self.number(one)}, '{unit}', 1)", TEXT)
        if name in ("DATABASE", "SCHEMA"):
            return text_literal(self.statement.database)
        if name == "VERSION":
            return text_literal("8.0.36")
        if name in ("USER", "CURRENT_USER", "SESSION_USER", "SYSTEM_USER"):
            return text_literal("agent@localhost")
        if name in ("CONNECTION_ID", "ROW_COUNT", "FOUND_ROWS", "LAST_INSERT_ID"):
            return Written("0", INT)
        if name in ("SLEEP", "BENCHMARK"):
            return Written("0", INT)
        if name == "UUID":
            return text_literal("00000000-0000-0000-0000-000000000000")
        if name == "ANY_VALUE":
            exactly(1)
            found = self.write(nodes[0], scope)
            return Written(f"MIN({self.collated(found)})", found.type)
        if name == "REGEXP_LIKE":
            exactly(2, 3)
            one, other = (self.write(node, scope) for node in nodes[:2])
            return Written(f"my_regexp({self.text(one)}, {self.text(other)})", INT)
        if name in functions.AGGREGATES:
            exactly(1)
            value = self.number(self.write(nodes[0], scope))
            return Written(f"my_{functions.AGGREGATES[name]}({value})", DOUBLE)
        if name in functions.WINDOWS:
            arguments = ", ".join(self.write(node, scope).sql for node in nodes)
            return Written(f"{name}({arguments})", functions.WINDOWS[name])
        values_ = [self.write(node, scope) for node in nodes]
        if not values_:
            raise wrong_count(name)
        return Written(f"{name}({', '.join(v.sql for v in values_)})", values_[0].type)

    def _shifted(self, found: Written, interval: exp.Interval, sign: str, scope: Scope) -> Written:
        unit = interval.args["unit"].name.lower() if interval.args.get("unit") else ""
        unit = unit.removesuffix("s") if unit.removesuffix("s") in _UNITS else unit
        if unit not in _UNITS or interval.this is None:
            raise syntax(interval.sql("mysql"))
        count = self.number(self.write(interval.this, scope))
        kind = found.type
        if kind == DATE and unit in ("hour", "minute", "second", "microsecond"):
            kind = DATETIME
        kind = kind if kind.temporal else TEXT
        step = 1 if sign == "+" else -1
        return Written(f"my_date_add({found.sql}, {count}, '{unit}', {step})", kind)

    def _extract(self, node: exp.Extract, scope: Scope) -> Written:
        unit = node.this.name.lower()
        if unit not in _UNITS and unit != "year_month":
            raise syntax(node.this.name)
        return Written(f"my_extract('{unit}', {self.write(node.expression, scope).sql})", INT)

    def _trim(self, node: exp.Trim, scope: Scope) -> Written:
        where = (node.args.get("position") or "both").lower()
        mark = node.args.get("expression")
        shown = self.write(mark, scope).sql if mark is not None else "' '"
        value = self.text(self.write(node.this, scope))
        return Written(f"my_trim({value}, '{where}', {shown})", TEXT)

    def _substring(self, node: exp.Substring, scope: Scope) -> Written:
        parts = [node.this, node.args.get("start"), node.args.get("length")]
        found = [self.write(part, scope) for part in parts if part is not None]
        if len(found) < 2:
            raise wrong_count("SUBSTRING")
        arguments = ", ".join([self.text(found[0]), *(item.sql for item in found[1:])])
        return Written(f"my_substring({arguments})", TEXT)

    def _position(self, node: exp.StrPosition, scope: Scope) -> Written:
        value, mark = self.write(node.this, scope), self.write(node.args["substr"], scope)
        return Written(f"my_locate({self.text(mark)}, {self.text(value)})", INT)

    def _arithmetic(self, node: exp.Binary, scope: Scope) -> Written:
        raise NotImplementedError


def wrong_count(name: str) -> Refused:
    return Refused(
        f"1582 (42000): Incorrect parameter count in the call to native function '{name}'"
    )
