"""Dates and times as MySQL reads, counts and writes them; in SQLite they are ISO text."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

from .sql_values import integer, number, rounded, text

NOW = datetime(2024, 1, 1)  # the present of every sample, so that equal statements answer equally
_DATE = re.compile(r"\s*(\d{4}|\d{2})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)")
_TIME = re.compile(r"(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.(\d{1,6}))?)?")
_LONGEST_TIME = 838 * 3600 + 59 * 60 + 59  # seconds; MySQL's TIME ends there
_MONTHS = list(calendar.month_name)
_DAYS = list(calendar.day_name)


def _moment(value: Any) -> datetime | None:
    """Text or number as a date with time; None where it is none."""
    found = text(value)
    try:
        if match := _DATE.match(found):
            year = int(match[1])
            if len(match[1]) == 2:
                year += 2000 if year < 70 else 1900
            begin = datetime(year, int(match[2]), int(match[3]))
            clock = _TIME.match(found[match.end() :].lstrip(" T"))
            return begin + _clock(clock) if clock else begin
        digits = re.match(r"\s*(\d+)", found)
        if digits and len(digits[1]) in (6, 8, 14):
            word = digits[1]
            if len(word) == 6:
                word = ("20" if word < "70" else "19") + word
            pairs = [int(word[place : place + 2]) for place in range(4, len(word), 2)]
            return datetime(int(word[:4]), *pairs)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        pass
    return None


def _clock(match: re.Match[str]) -> timedelta:
    return timedelta(
        hours=int(match[1]),
        minutes=int(match[2]),
        seconds=int(match[3] or 0),
        microseconds=int((match[4] or "").ljust(6, "0") or 0),
    )


def _span(value: Any) -> timedelta | None:
    """Text or number as a time of day."""
    found = text(value).strip()
    if (match := _DATE.match(found)) is not None:
        found = found[match.end() :].lstrip(" T")
        if not found:
            return timedelta(0)
    if match := _TIME.match(found):
        return _clock(match)
    return None


def _shown(moment: datetime) -> str:
    if moment.microsecond:
        return f"{moment:%Y-%m-%d %H:%M:%S.%f}"
    return moment.isoformat(sep=" ")


def _at(make: Callable[[datetime], Any]) -> Callable[[Any], Any]:
    def call(value: Any) -> Any:
        moment = _moment(value)
        return None if moment is None else make(moment)

    return call


def _part(pick: Callable[[timedelta], int]) -> Callable[[Any], Any]:
    def call(value: Any) -> Any:
        span = _span(value)
        return None if span is None else pick(span)

    return call


def _seconds(span: timedelta) -> int:
    return span.days * 86400 + span.seconds


def _week(moment: datetime, mode: int) -> int:
    return int(moment.strftime("%W" if mode & 1 else "%U")) if mode < 2 else moment.isocalendar()[1]


_PARTS: dict[str, Callable[[datetime], Any]] = {
    "Y": lambda at: f"{at.year:04}", "y": lambda at: f"{at.year % 100:02}",
    "m": lambda at: f"{at.month:02}", "c": lambda at: str(at.month),
    "M": lambda at: _MONTHS[at.month], "b": lambda at: _MONTHS[at.month][:3],
    "d": lambda at: f"{at.day:02}", "e": lambda at: str(at.day),
    "D": lambda at: f"{at.day}{_suffix(at.day)}", "W": lambda at: _DAYS[at.weekday()],
    "a": lambda at: _DAYS[at.weekday()][:3], "w": lambda at: str(at.isoweekday() % 7),
    "j": lambda at: f"{at.timetuple().tm_yday:03}", "H": lambda at: f"{at.hour:02}",
    "k": lambda at: str(at.hour), "h": lambda at: f"{at.hour % 12 or 12:02}",
    "I": lambda at: f"{at.hour % 12 or 12:02}", "l": lambda at: str(at.hour % 12 or 12),
    "i": lambda at: f"{at.minute:02}", "s": lambda at: f"{at.second:02}",
    "S": lambda at: f"{at.second:02}", "f": lambda at: f"{at.microsecond:06}",
    "p": lambda at: "AM" if at.hour < 12 else "PM", "T": lambda at: f"{at:%H:%M:%S}",
    "r": lambda at: f"{at.hour % 12 or 12:02}:{at:%M:%S} {'AM' if at.hour < 12 else 'PM'}",
    "U": lambda at: f"{_week(at, 0):02}", "u": lambda at: f"{_week(at, 1):02}",
    "v": lambda at: f"{at.isocalendar()[1]:02}", "x": lambda at: f"{at.isocalendar()[0]:04}",
}  # fmt: skip


def _suffix(day: int) -> str:
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def _date_format(value: Any, form: Any) -> Any:
    moment = _moment(value)
    if moment is None:
        return None
    return re.sub(
        r"%(.)", lambda match: str(_PARTS.get(match[1], lambda _: match[1])(moment)), text(form)
    )


def _str_to_date(value: Any, form: Any) -> Any:
    """Read *value* by MySQL's format; a date, a time or both, by what the format names."""
    found, place = text(value), 0
    fields: dict[str, int] = {}
    form = re.sub("%T", "%H:%i:%s", re.sub("%r", "%h:%i:%s %p", text(form)))
    letters = iter(form)
    for letter in letters:
        while place < len(found) and found[place].isspace():
            place += 1
        if letter.isspace():
            continue
        if letter != "%":
            if place >= len(found) or found[place] != letter:
                return None
            place += 1
            continue
        code = next(letters, "%")
        taken = _read(code, found[place:], fields)
        if taken is None:
            return None
        place += taken
    return _assembled(fields, form)


_WIDTHS = {"Y": 4, "f": 6, "j": 3}
_NAMES = {"M": _MONTHS, "b": [name[:3] for name in _MONTHS], "W": _DAYS,
          "a": [name[:3] for name in _DAYS]}  # fmt: skip


def _read(code: str, rest: str, fields: dict[str, int]) -> int | None:
    """Take one part from *rest*; return how many letters it had."""
    if code in _NAMES:
        for index, name in enumerate(_NAMES[code]):
            if name and rest[: len(name)].lower() == name.lower():
                if code in "Mb":
                    fields["m"] = index
                return len(name)
        return None
    if code == "p":
        if rest[:2].upper() not in ("AM", "PM"):
            return None
        fields["p"] = int(rest[:2].upper() == "PM")
        return 2
    match = re.match(rf"\d{{1,{_WIDTHS.get(code, 2)}}}", rest)
    if match is None or code not in "YymcdeDHkhIlisSfj":
        return None
    fields[
        {"c": "m", "e": "d", "D": "d", "k": "H", "I": "h", "l": "h", "S": "s"}.get(code, code)
    ] = int(match[0].ljust(6, "0")) if code == "f" else int(match[0])
    if code == "y" or (code == "Y" and len(match[0]) == 2):
        fields["Y"] = int(match[0]) + (2000 if int(match[0]) < 70 else 1900)
    return len(match[0]) + (2 if code == "D" else 0)


def _assembled(fields: dict[str, int], form: str) -> Any:
    hour = fields.get("H", fields.get("h", 0))
    if "h" in fields:
        hour = fields["h"] % 12 + 12 * fields.get("p", 0)
    minute, second = fields.get("i", 0), fields.get("s", 0)
    if hour > 23 or minute > 59 or second > 59:
        return None
    clock = f"{hour:02}:{minute:02}:{second:02}"
    dated, timed = re.search("%[YymcMbdeDj]", form), re.search("%[HkhIlisSf]", form)
    if not dated:
        return clock if timed else None
    if not (fields.get("Y") and fields.get("m") and fields.get("d")):
        return None  # NO_ZERO_IN_DATE
    try:
        day = date(fields["Y"], fields["m"], fields["d"]).isoformat()
    except ValueError:
        return None
    return f"{day} {clock}" if timed else day


_STEPS = {
    "microsecond": 1e-6,
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 604800,
}


def _date_add(value: Any, count: Any, unit: str, sign: int) -> Any:
    moment = _moment(value)
    if moment is None:
        return None
    timed = unit in ("microsecond", "second", "minute", "hour") or ":" in text(value)
    try:
        if unit in _STEPS:
            moment += timedelta(seconds=sign * float(number(count)) * _STEPS[unit])
        else:
            months = {"month": 1, "quarter": 3, "year": 12}.get(unit)
            if months is None:
                return None
            moment = _later(moment, sign * integer(count) * months)
    except (OverflowError, ValueError):
        return None
    return _shown(moment) if timed else moment.date().isoformat()


def _later(moment: datetime, months: int) -> datetime:
    years, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(years, month + 1)[1])
    return moment.replace(year=years, month=month + 1, day=day)


def _datediff(one: Any, other: Any) -> Any:
    first, second = _moment(one), _moment(other)
    return None if first is None or second is None else (first.date() - second.date()).days


def _timestampdiff(unit: str, one: Any, other: Any) -> Any:
    first, second = _moment(one), _moment(other)
    if first is None or second is None:
        return None
    if unit in _STEPS:
        return int((second - first).total_seconds() / _STEPS[unit])
    sign = 1 if second >= first else -1
    early, late = min(first, second), max(first, second)
    months = (late.year - early.year) * 12 + late.month - early.month
    if (late.day, late.time()) < (early.day, early.time()):
        months -= 1
    return sign * (months // {"month": 1, "quarter": 3, "year": 12}.get(unit, 1))


def _extract(unit: str, value: Any) -> Any:
    if unit in ("hour", "minute", "second", "microsecond"):
        function = FUNCTIONS[unit]
    elif unit == "year_month":
        function = _at(lambda at: at.year * 100 + at.month)
    else:
        function = FUNCTIONS.get(unit, lambda value: None)
    return function(value)


def _makedate(year: Any, day: Any) -> Any:
    try:
        begin = date(integer(year), 1, 1)
        return (begin + timedelta(days=integer(day) - 1)).isoformat() if integer(day) > 0 else None
    except (ValueError, OverflowError):
        return None


def _time(value: Any) -> Any:
    span = _span(value)
    if span is None:
        return None
    seconds = _seconds(span)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _from_unixtime(value: Any, form: Any = None) -> Any:
    try:
        moment = datetime(1970, 1, 1) + timedelta(seconds=float(number(value)))
    except OverflowError:
        return None
    return _shown(moment) if form is None else _date_format(_shown(moment), form)


def _unix_timestamp(value: Any = None) -> Any:
    moment = NOW if value is None else _moment(value)
    return None if moment is None else int((moment - datetime(1970, 1, 1)).total_seconds())


def _sec_to_time(value: Any) -> str:
    seconds = integer(value)
    sign, seconds = ("-" if seconds < 0 else ""), min(abs(seconds), _LONGEST_TIME)
    return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _timediff(one: Any, other: Any) -> Any:
    first, second = _span(one), _span(other)
    if first is None or second is None:
        return None
    return _sec_to_time(int(rounded((first - second).total_seconds(), 0)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "date": _at(lambda at: at.date().isoformat()), "datetime": _at(_shown), "time": _time,
    "year": _at(lambda at: at.year), "month": _at(lambda at: at.month),
    "day": _at(lambda at: at.day), "quarter": _at(lambda at: (at.month + 2) // 3),
    "week": lambda value, mode=0: _at(lambda at: _week(at, integer(mode)))(value),
    "weekofyear": _at(lambda at: at.isocalendar()[1]),
    "yearweek": _at(lambda at: at.year * 100 + _week(at, 0)),
    "dayofweek": _at(lambda at: at.isoweekday() % 7 + 1), "weekday": _at(lambda at: at.weekday()),
    "dayofyear": _at(lambda at: at.timetuple().tm_yday),
    "dayname": _at(lambda at: _DAYS[at.weekday()]), "monthname": _at(lambda at: _MONTHS[at.month]),
    "last_day": _at(
        lambda at: at.replace(day=calendar.monthrange(at.year, at.month)[1]).date().isoformat()
    ),
    "hour": _part(lambda span: _seconds(span) // 3600),
    "minute": _part(lambda span: _seconds(span) // 60 % 60),
    "second": _part(lambda span: _seconds(span) % 60),
    "microsecond": _part(lambda span: span.microseconds),
    "to_days": _at(lambda at: at.toordinal() + 365),
    "from_days": lambda value: _makedate(1, integer(value) - 365),
    "time_to_sec": _part(_seconds), "sec_to_time": _sec_to_time, "timediff": _timediff,
    "date_format": _date_format, "time_format": lambda value, form: _date_format(
        f"2000-01-01 {text(value)}", form), "str_to_date": _str_to_date,
    "date_add": _date_add, "datediff": _datediff, "timestampdiff": _timestampdiff,
    "extract": _extract, "makedate": _makedate, "from_unixtime": _from_unixtime,
    "unix_timestamp": _unix_timestamp, "now": lambda *_: _shown(NOW),
    "curdate": lambda: NOW.date().isoformat(), "curtime": lambda *_: "00:00:00",
}  # fmt: skip
