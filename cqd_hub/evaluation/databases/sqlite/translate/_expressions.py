"""Expressions: MySQL's conversions written out, so that SQLite compares what MySQL compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlglot import exp

from . import _functions as functions
from ._aggregates import Aggregates
from ._calls import PRESENT
from ._conditions import COMPARED, Conditions
from ._contexts import Scope, Statement
from ._types import (
    BINARY,
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    NULL,
    TEXT,
    TIME,
    Refused,
    Written,
    arithmetic,
    decimal,
    joined,
    quoted,
    string,
    syntax,
    text_literal,
)

_SIGNS: dict[type[exp.Expr], str] = {
    exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.IntDiv: "DIV", exp.Mod: "%",
}  # fmt: skip
_BITS: dict[type[exp.Expr], str] = {
    exp.BitwiseAnd: "&", exp.BitwiseOr: "|", exp.BitwiseLeftShift: "<<",
    exp.BitwiseRightShift: ">>",
}  # fmt: skip


class Expressions(Conditions, Aggregates):
    """Writes expressions; `query` is the writer of subqueries."""

    def __init__(
        self, statement: Statement, query: Callable[[exp.Expr, Scope], tuple[str, Any]]
    ) -> None:
        super().__init__(statement, query)
        self._writers: dict[type[exp.Expr], Callable[..., Written]] = {
            exp.Column: self._column,
            exp.Literal: self._literal,
            exp.Null: lambda node, scope: Written("NULL", NULL),
            exp.Boolean: lambda node, scope: Written(str(int(node.this)), INT, literal=_bit(node)),
            exp.Paren: self._paren,
            exp.Neg: self._negative,
            exp.Not: lambda node, scope: Written(f"(NOT {self.truth(node.this, scope)})", INT),
            exp.And: self._connected,
            exp.Or: self._connected,
            exp.Xor: self._xor,
            exp.Between: self._between,
            exp.In: self._in,
            exp.Like: self._like,
            exp.Escape: self._like,
            exp.RegexpLike: self._regexp,
            exp.Is: self._is,
            exp.BitwiseXor: self._bit_xor,
            exp.BitwiseNot: self._bit_not,
            exp.Case: self._case,
            exp.Cast: self._cast,
            exp.Concat: lambda node, scope: self.call("CONCAT", node.expressions, scope),
            exp.Trim: self._trim,
            exp.Substring: self._substring,
            exp.StrPosition: self._position,
            exp.Extract: self._extract,
            exp.Anonymous: self._named,
            exp.Count: self._count,
            exp.Sum: self._sum,
            exp.Avg: self._avg,
            exp.Min: lambda node, scope: self._edge("MIN", node, scope),
            exp.Max: lambda node, scope: self._edge("MAX", node, scope),
            exp.GroupConcat: self._group_concat,
            exp.Window: self._window,
            exp.Subquery: self._subquery,
            exp.Exists: self._exists,
            exp.Introducer: lambda node, scope: self.write(node.expression, scope),
            exp.National: lambda node, scope: Written(string(node.name), TEXT, literal=node.name),
            exp.Collate: self._collate,
            exp.HexString: lambda node, scope: text_literal(_hex(node.name)),
            exp.BitString: lambda node, scope: Written(str(int(node.name or "0", 2)), INT),
            exp.SessionParameter: lambda node, scope: text_literal("8.0.36"),
            exp.Parameter: lambda node, scope: Written("NULL", NULL),
            **dict.fromkeys(COMPARED, self._compared),
            **dict.fromkeys(_SIGNS, self._arithmetic),
            **dict.fromkeys(_BITS, self._bitwise),
            **dict.fromkeys(PRESENT, self._present),
        }

    def write(self, node: exp.Expr, scope: Scope) -> Written:
        """Write one expression.

        Raises:
            Refused: MySQL's error for it.
        """
        if writer := self._writers.get(type(node)):
            found = writer(node, scope)
            # NOT LIKE, and whatever else the parser negates in place
            return Written(f"(NOT {found.sql})", INT) if node.args.get("negate") else found
        if isinstance(node, exp.Func) and not isinstance(node, (exp.Array, exp.Bracket)):
            name = node.sql_name()
            raise Refused(f"1305 (42000): FUNCTION {self.statement.database}.{name} does not exist")
        if isinstance(node, exp.Query):
            sql, columns = self._query(node, scope)
            return Written(f"({sql})", columns[0][1] if columns else TEXT)
        raise syntax(node.sql("mysql"))

    # contexts

    # names and literals

    def _column(self, node: exp.Column, scope: Scope) -> Written:
        if isinstance(node.this, exp.Star):
            raise syntax("*")
        name, table = node.name, node.table
        if (
            not node.this.args.get("quoted")
            and name.upper() in functions.FUNCTIONS
            and (
                name.upper()
                in ("LOCALTIME", "LOCALTIMESTAMP", "UTC_DATE", "UTC_TIME", "UTC_TIMESTAMP")
            )
        ):
            return self.call(name.upper(), [], scope)
        self.statement.clauses.setdefault(name.lower(), scope.clause)
        if name.lower() in ("rowid", "oid", "_rowid_"):
            self.statement.needed.append(name)
        prefix = f"{quoted(table)}." if table else ""
        kind = scope.type_of(table.lower(), name.lower())
        return Written(prefix + quoted(name), kind, bare=True)

    def _literal(self, node: exp.Literal, scope: Scope) -> Written:
        word = node.this
        if node.is_string:
            return text_literal(word)
        if "e" in word.lower():
            return Written(word, DOUBLE, literal=word)
        if "." in word:
            whole, _, digits = word.partition(".")
            return Written(f"{whole or 0}.{digits or 0}", decimal(len(digits)), literal=word)
        return Written(word, INT if len(word) < 20 else decimal(0), literal=word)

    def _paren(self, node: exp.Paren, scope: Scope) -> Written:
        found = self.write(node.this, scope)
        return Written(f"({found.sql})", found.type, literal=found.literal)

    def _negative(self, node: exp.Neg, scope: Scope) -> Written:
        found = self.write(node.this, scope)
        kind = found.type if found.type.numeric else DOUBLE
        literal = f"-{found.literal}" if found.literal and found.type.numeric else None
        if literal and literal.startswith("--"):
            literal = None
        return Written(f"(- {self.number(found)})", kind, literal=literal)

    def _collate(self, node: exp.Collate, scope: Scope) -> Written:
        found = self.write(node.this, scope)
        binary = node.expression.name.lower().endswith(("_bin", "binary"))
        return Written(self.text(found), BINARY if binary else TEXT)

    # conditions

    # numbers

    def _arithmetic(self, node: exp.Binary, scope: Scope) -> Written:
        sign = _SIGNS[type(node)]
        for interval, other in ((node.expression, node.this), (node.this, node.expression)):
            if isinstance(interval, exp.Interval) and sign in ("+", "-"):
                return self._shifted(self.write(other, scope), interval, sign, scope)
        one, other_ = self.write(node.this, scope), self.write(node.expression, scope)
        left, right = self.number(one), self.number(other_)
        if sign == "DIV":
            return Written(f"my_whole({left}, {right})", INT)
        kind = arithmetic(sign, one.type, other_.type)
        if sign in ("/", "%"):
            name = "div" if sign == "/" else "fmod" if kind == DOUBLE else "mod"
            return Written(f"my_{name}({left}, {right})", kind)
        sql = f"({left} {sign} {right})"
        if kind.kind == "decimal":  # whose digits are exact: 0.1 + 0.2 = 0.3
            sql = f"my_decimal({sql}, {min(30, kind.scale + 6)})"
        return Written(sql, kind)

    def _bitwise(self, node: exp.Binary, scope: Scope) -> Written:
        one, other = self._bits(node.this, scope), self._bits(node.expression, scope)
        return Written(f"({one} {_BITS[type(node)]} {other})", INT)

    def _bit_xor(self, node: exp.BitwiseXor, scope: Scope) -> Written:
        one, other = self._bits(node.this, scope), self._bits(node.expression, scope)
        return Written(f"(({one} | {other}) - ({one} & {other}))", INT)

    def _bit_not(self, node: exp.BitwiseNot, scope: Scope) -> Written:
        return Written(f"(~ {self._bits(node.this, scope)})", INT)

    def _bits(self, node: exp.Expr, scope: Scope) -> str:
        return f"my_bits({self.number(self.write(node, scope))})"

    # conversions

    def _cast(self, node: exp.Cast, scope: Scope) -> Written:
        found, to = self.write(node.this, scope), node.to
        kind = to.this
        if not isinstance(kind, exp.DataType.Type):  # CHAR CHARACTER SET x
            return Written(f"my_str({self.text(found)})", TEXT)
        kinds, size = (
            exp.DataType.Type,
            [int(item.name) for item in to.expressions if item.name.isdigit()],
        )
        if kind in (kinds.BIGINT, kinds.INT, kinds.TINYINT, kinds.SMALLINT, kinds.MEDIUMINT):
            return Written(f"my_signed({found.sql})", INT)
        if kind in (kinds.UBIGINT, kinds.UINT, kinds.UDOUBLE):
            return Written(f"my_unsigned({found.sql})", INT)
        if kind in (kinds.DECIMAL, kinds.UDECIMAL):
            scale = size[1] if len(size) > 1 else 0
            return Written(f"my_decimal({found.sql}, {scale})", decimal(scale))
        if kind in (kinds.DOUBLE, kinds.FLOAT):
            return Written(f"(my_num({found.sql}) + 0.0)", DOUBLE)
        if kind == kinds.DATE:
            return Written(f"my_date({found.sql})", DATE)
        if kind in (kinds.DATETIME, kinds.TIMESTAMP, kinds.TIMESTAMPTZ, kinds.TIMESTAMPNTZ):
            return Written(f"my_datetime({found.sql})", DATETIME)
        if kind == kinds.TIME:
            return Written(f"my_time({found.sql})", TIME)
        sql = f"my_str({self.text(found)})"
        if size:
            sql = f"my_left({sql}, {size[0]})"
        binary = kind in (kinds.BINARY, kinds.VARBINARY, kinds.BLOB)
        return Written(sql, BINARY if binary else TEXT)

    def _case(self, node: exp.Case, scope: Scope) -> Written:
        parts, results = [], []
        subject = self.write(node.this, scope) if node.this is not None else None
        for branch in node.args["ifs"]:
            if subject is None:
                condition = self.truth(branch.this, scope)
            else:
                condition = self.compare(subject, "=", self.write(branch.this, scope))
            result = self.write(branch.args["true"], scope)
            parts.append(f"WHEN {condition} THEN ")
            results.append(result)
        default = node.args.get("default")
        if default is not None:
            parts.append("ELSE ")
            results.append(self.write(default, scope))
        kind = joined(result.type for result in results)
        body = " ".join(p + self.alike(r, kind) for p, r in zip(parts, results, strict=True))
        return Written(f"(CASE {body} END)", kind)

    # functions

    # aggregates


def _bit(node: exp.Boolean) -> str:
    return str(int(node.this))


def _hex(word: str) -> str:
    try:
        return bytes.fromhex("0" * (len(word) % 2) + word).decode("utf-8", "replace")
    except ValueError:
        raise syntax(word) from None
