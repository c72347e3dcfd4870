"""MySQL's functions: how many arguments, what type, and the name of ours in the box."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ._types import (
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    TEXT,
    TIME,
    Type,
    Written,
    decimal,
    joined,
)

Typing = Callable[[list[Written]], Type]
MANY = 255


class Function(NamedTuple):
    """One of MySQL's functions.

    Args:
        ours: Its name in the box, without the prefix.
        least, most: Numbers of arguments.
        type: Of its result.
        texts: Its arguments are text: DECIMALs are written with all their digits.
    """

    ours: str
    least: int
    most: int
    type: Typing
    texts: bool = True


def _always(kind: Type) -> Typing:
    return lambda arguments: kind


def _number(arguments: list[Written]) -> Type:
    kind = arguments[0].type
    return kind if kind.numeric else DOUBLE


def _whole(arguments: list[Written]) -> Type:
    return INT if arguments[0].type.kind in ("int", "decimal") else DOUBLE


def _rounded(arguments: list[Written]) -> Type:
    kind = arguments[0].type
    if kind.kind != "decimal":
        return _number(arguments)
    digits = 0
    if len(arguments) > 1:
        try:
            digits = int(arguments[1].literal or arguments[1].sql.strip("()"))
        except ValueError:
            digits = kind.scale
    return decimal(min(digits, kind.scale))


def _any(arguments: list[Written]) -> Type:
    return joined(argument.type for argument in arguments)


def _read_date(arguments: list[Written]) -> Type:
    form = (arguments[1].literal or "%Y-%m-%d") if len(arguments) > 1 else "%Y-%m-%d"
    dated = any(f"%{letter}" in form for letter in "YymcMbdeDj")
    timed = any(f"%{letter}" in form for letter in "HkhIlisSfTr")
    return (DATETIME if timed else DATE) if dated else TIME


def _many(names: str, kind: Type, least: int, most: int, texts: bool = True) -> dict[str, Function]:
    return {
        name.upper(): Function(name.lower(), least, most, _always(kind), texts)
        for name in names.split()
    }


FUNCTIONS: dict[str, Function] = {
    **_many("length char_length bit_length ascii ord crc32", INT, 1, 1),
    **_many("upper lower reverse ltrim rtrim quote md5 sha1 soundex to_base64", TEXT, 1, 1),
    **_many("from_base64 unhex bin oct", TEXT, 1, 1),
    **_many("hex dayname monthname", TEXT, 1, 1, False),
    **_many("left right repeat sha2 date_format time_format", TEXT, 2, 2),
    **_many("space", TEXT, 1, 1, False),
    **_many("substring_index replace conv", TEXT, 3, 3),
    "MID": Function("substring", 2, 3, _always(TEXT)),
    **_many("insert", TEXT, 4, 4),
    **_many("lpad rpad", TEXT, 3, 3),
    **_many("concat", TEXT, 1, MANY),
    **_many("concat_ws elt", TEXT, 2, MANY),
    **_many("char", TEXT, 1, MANY),
    **_many("field", INT, 2, MANY, False),
    **_many("instr find_in_set strcmp", INT, 2, 2),
    **_many("locate", INT, 2, 3),
    **_many("regexp_replace", TEXT, 3, 6),
    **_many("regexp_substr", TEXT, 2, 5),
    **_many("regexp_instr", INT, 2, 6),
    **_many(
        "sqrt exp ln log2 log10 sin cos tan asin acos radians degrees cot", DOUBLE, 1, 1, False
    ),
    **_many("atan log", DOUBLE, 1, 2, False),
    **_many("atan2 pow", DOUBLE, 2, 2, False),
    **_many("pi", DOUBLE, 0, 0, False),
    **_many("sign", INT, 1, 1, False),
    **_many("rand", DOUBLE, 0, 1, False),
    **_many("year month day quarter weekofyear dayofweek weekday dayofyear", INT, 1, 1),
    **_many("hour minute second microsecond to_days time_to_sec", INT, 1, 1),
    **_many("week", INT, 1, 2),
    **_many("yearweek", INT, 1, 2),
    **_many("datediff", INT, 2, 2),
    **_many("last_day from_days date", DATE, 1, 1),
    **_many("makedate", DATE, 2, 2),
    **_many("time sec_to_time", TIME, 1, 1),
    **_many("timediff", TIME, 2, 2),
    **_many("now", DATETIME, 0, 1),
    **_many("curdate", DATE, 0, 0),
    **_many("curtime", TIME, 0, 1),
    "FORMAT": Function("format", 2, 3, _always(TEXT), False),
    "STR_TO_DATE": Function("str_to_date", 2, 2, _read_date),
    "FROM_UNIXTIME": Function("from_unixtime", 1, 2, lambda a: TEXT if len(a) > 1 else DATETIME),
    "UNIX_TIMESTAMP": Function("unixtime", 0, 1, _always(INT)),
    "TIMESTAMP": Function("datetime", 1, 1, _always(DATETIME)),
    "ABS": Function("abs", 1, 1, _number, False),
    "CEIL": Function("ceil", 1, 1, _whole, False),
    "FLOOR": Function("floor", 1, 1, _whole, False),
    "ROUND": Function("round", 1, 2, _rounded, False),
    "TRUNCATE": Function("truncate", 2, 2, _rounded, False),
    "GREATEST": Function("greatest", 2, MANY, _any, False),
    "LEAST": Function("least", 2, MANY, _any, False),
}
_SAME = {
    "CHARACTER_LENGTH": "CHAR_LENGTH", "OCTET_LENGTH": "LENGTH", "UCASE": "UPPER",
    "LCASE": "LOWER", "SHA": "SHA1", "POWER": "POW", "CEILING": "CEIL", "DAYOFMONTH": "DAY",
    "SYSDATE": "NOW", "LOCALTIME": "NOW", "LOCALTIMESTAMP": "NOW", "CURRENT_TIMESTAMP": "NOW",
    "UTC_TIMESTAMP": "NOW", "CURRENT_DATE": "CURDATE", "UTC_DATE": "CURDATE",
    "CURRENT_TIME": "CURTIME", "UTC_TIME": "CURTIME",
}  # fmt: skip
FUNCTIONS |= {name: FUNCTIONS[other] for name, other in _SAME.items()}
# Written out by the translator itself.
SPECIAL = frozenset(
    (
        *("IF", "IFNULL", "NULLIF", "COALESCE", "ISNULL", "MOD", "DATE_ADD", "DATE_SUB"),
        *("ADDDATE", "SUBDATE", "TIMESTAMPADD", "TIMESTAMPDIFF", "DATABASE", "SCHEMA"),
        *("VERSION", "USER", "CURRENT_USER", "SESSION_USER", "SYSTEM_USER"),
        *("CONNECTION_ID", "ROW_COUNT", "FOUND_ROWS", "LAST_INSERT_ID", "ANY_VALUE"),
        *("STD", "STDDEV", "STDDEV_POP", "STDDEV_SAMP", "VARIANCE", "VAR_POP"),
        *("VAR_SAMP", "ROW_NUMBER", "RANK", "DENSE_RANK", "PERCENT_RANK", "CUME_DIST"),
        *("NTILE", "LAG", "LEAD", "FIRST_VALUE", "LAST_VALUE", "NTH_VALUE"),
        *("REGEXP_LIKE", "SLEEP", "BENCHMARK", "UUID"),
    )
)
AGGREGATES = {
    "STD": "stddev", "STDDEV": "stddev", "STDDEV_POP": "stddev", "STDDEV_SAMP": "stddev_samp",
    "VARIANCE": "variance", "VAR_POP": "variance", "VAR_SAMP": "var_samp",
}  # fmt: skip
WINDOWS = {
    "ROW_NUMBER": INT, "RANK": INT, "DENSE_RANK": INT, "PERCENT_RANK": DOUBLE, "CUME_DIST": DOUBLE,
    "NTILE": INT,
}  # fmt: skip
PICKING = ("LAG", "LEAD", "FIRST_VALUE", "LAST_VALUE", "NTH_VALUE")
