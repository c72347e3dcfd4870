"""Expressions: MySQL's conversions written out, so that SQLite compares what MySQL compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from . import _functions as functions
from ._tokens import PREFIX
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
    Type,
    Written,
    arithmetic,
    decimal,
    joined,
    quoted,
    string,
    syntax,
)

Columns = dict[str, Type]
_COMPARED: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<=",
    exp.NullSafeEQ: "IS",
}  # fmt: skip
_SIGNS: dict[type[exp.Expr], str] = {
    exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.IntDiv: "DIV", exp.Mod: "%",
}  # fmt: skip
_BITS: dict[type[exp.Expr], str] = {
    exp.BitwiseAnd: "&", exp.BitwiseOr: "|", exp.BitwiseLeftShift: "<<",
    exp.BitwiseRightShift: ">>",
}  # fmt: skip
_PRESENT: dict[type[exp.Expr], str] = {
    exp.CurrentDate: "CURDATE", exp.CurrentTimestamp: "NOW", exp.CurrentTime: "CURTIME",
}  # fmt: skip
_UNITS = frozenset(
    ("microsecond", "second", "minute", "hour", "day", "week", "month", "quarter", "year")
)


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


class Expressions:
    """Writes expressions; `query` is the writer of subqueries."""

    def __init__(
        self, statement: Statement, query: Callable[[exp.Expr, Scope], tuple[str, Any]]
    ) -> None:
        self.statement, self._query = statement, query
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
            exp.HexString: lambda node, scope: _text(_hex(node.name)),
            exp.BitString: lambda node, scope: Written(str(int(node.name or "0", 2)), INT),
            exp.SessionParameter: lambda node, scope: _text("8.0.36"),
            exp.Parameter: lambda node, scope: Written("NULL", NULL),
            **dict.fromkeys(_COMPARED, self._compared),
            **dict.fromkeys(_SIGNS, self._arithmetic),
            **dict.fromkeys(_BITS, self._bitwise),
            **dict.fromkeys(_PRESENT, self._present),
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
            return _text(word)
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
        sign = _COMPARED[type(node)]
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

    def _quantified(self, node: exp.Binary, scope: Scope) -> Written:
        sign, every = _COMPARED[type(node)], isinstance(node.expression, exp.All)
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

    def alike(self, found: Written, kind: Type) -> str:
        """A value that may become another type's (a branch of CASE)."""
        if kind.kind == "text" and found.type.numeric:
            return self.stored(found)
        return found.sql

    def chosen(self, values: Iterable[Written]) -> tuple[list[str], Type]:
        found = list(values)
        kind = joined(item.type for item in found)
        return [self.alike(item, kind) for item in found], kind

    # functions

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
        return self.call(_PRESENT[type(node)], [], scope)

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
            return _text(self.statement.database)
        if name == "VERSION":
            return _text("8.0.36")
        if name in ("USER", "CURRENT_USER", "SESSION_USER", "SYSTEM_USER"):
            return _text("agent@localhost")
        if name in ("CONNECTION_ID", "ROW_COUNT", "FOUND_ROWS", "LAST_INSERT_ID"):
            return Written("0", INT)
        if name in ("SLEEP", "BENCHMARK"):
            return Written("0", INT)
        if name == "UUID":
            return _text("00000000-0000-0000-0000-000000000000")
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

    # aggregates

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


def _edge_of(spec: exp.Expr, name: str, writer: Expressions, scope: Scope) -> str:
    edge, side = spec.args.get(name), spec.args.get(f"{name}_side")
    if edge is None:
        return "CURRENT ROW"
    if isinstance(edge, exp.Expr):
        edge = writer.write(edge, scope).sql
    return f"{edge} {side}" if side else str(edge)


def wrong_count(name: str) -> Refused:
    return Refused(
        f"1582 (42000): Incorrect parameter count in the call to native function '{name}'"
    )


def sql_in(sql: str) -> str:
    """A query as one arm of a UNION."""
    return f"SELECT * FROM ({sql})"


def _text(word: str) -> Written:
    return Written(string(word), TEXT, literal=word)


def _bit(node: exp.Boolean) -> str:
    return str(int(node.this))


def _hex(word: str) -> str:
    try:
        return bytes.fromhex("0" * (len(word) % 2) + word).decode("utf-8", "replace")
    except ValueError:
        raise syntax(word) from None


def _timed(found: Written) -> bool:
    return found.type.kind == "text" and ":" in (found.literal or "")
