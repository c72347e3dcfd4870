"""What MySQL's ONLY_FULL_GROUP_BY refuses, and where aliases are not in sight."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from . import _functions as functions
from ._contexts import Scope, Statement
from ._tokens import PREFIX
from ._types import Refused


class Grouping:
    """Checks of one statement's queries."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement

    def _no_aggregate(self, node: exp.Expr) -> None:
        if aggregates(node):
            raise Refused("1111 (HY000): Invalid use of group function")

    def _not_aliases(self, node: exp.Expr, scope: Scope) -> None:
        """SQLite would take an alias of the select list here."""
        if scope.outer or any(source is not None for source in scope.sources.values()):
            return
        for column in _columns(node):
            if not column.table and column.name.lower() in scope.aliases:
                self.statement.clauses[column.name.lower()] = "where clause"
                self.statement.needed.append(column.name)

    def _having(self, node: exp.Select, having: exp.Having) -> None:
        """HAVING sees the select list, the grouping and aggregates only."""
        if any(is_star(item) for item in node.expressions):
            return
        shown = {item.alias_or_name.lower() for item in node.expressions}
        shown |= {
            column.name.lower()
            for item in node.expressions
            for column in [item.this if isinstance(item, exp.Alias) else item]
            if isinstance(column, exp.Column)
        }
        if group := node.args.get("group"):
            shown |= {item.name.lower() for item in group.expressions}
        for column in _bare_columns(having.this):
            if column.name.lower() not in shown:
                raise Refused(
                    f"1054 (42S22): Unknown column '{_dotted(column)}' in 'having clause'"
                )

    def _grouped_only(self, node: exp.Select, scope: Scope, aggregated: bool) -> None:
        """Errors 1055 and 1140."""
        group = node.args.get("group")
        if group is None:
            if not aggregated:
                return
            for place, item in enumerate(node.expressions):
                if (column := _first_bare(item, set(), set())) is not None:
                    raise self._mixed(1140, place, column, scope)
            return
        keys, names = set(), set()
        for item in group.expressions:
            chosen_place = ordinal(item)
            if chosen_place is not None:
                chosen = node.expressions[chosen_place - 1]
                item = chosen.this if isinstance(chosen, exp.Alias) else chosen
            for other in node.expressions:  # an alias stands for what it names
                named = isinstance(item, exp.Column) and not item.table
                if named and isinstance(other, exp.Alias) and _spelt(item) == other.alias.lower():
                    keys.add(_spelt(other.this))
            keys.add(_spelt(item))
            if isinstance(item, exp.Column):
                names.add(item.name.lower())
        for index, item in enumerate(node.expressions):
            if is_star(item):
                if all(source is None for source in scope.sources.values()):
                    self.statement.grouped = sorted(names)
                continue
            if (column := _first_bare(item, keys, names)) is not None:
                raise self._mixed(1055, index, column, scope)

    def _mixed(self, number: int, place: int, column: exp.Column, scope: Scope) -> Refused:
        base = [alias for alias, source in scope.sources.items() if source is None]
        table = column.table or (self.statement.tables[0] if base else "")
        shown = f"{self.statement.database}.{table}.{column.name}"
        return mixed(number, place + 1, shown)


def mixed(number: int, place: int, shown: str) -> Refused:
    """ONLY_FULL_GROUP_BY's error for the *place*-th of the select list."""
    if number == 1140:
        return Refused(
            f"1140 (42000): In aggregated query without GROUP BY, expression #{place} of SELECT "
            f"list contains nonaggregated column '{shown}'; this is incompatible with "
            "sql_mode=only_full_group_by"
        )
    return Refused(
        f"1055 (42000): Expression #{place} of SELECT list is not in GROUP BY clause and contains "
        f"nonaggregated column '{shown}' which is not functionally dependent on columns in GROUP "
        "BY clause; this is incompatible with sql_mode=only_full_group_by"
    )


def _spelt(node: exp.Expr) -> str:
    if isinstance(node, exp.Column):
        return node.name.lower()
    if isinstance(node, exp.Paren):
        return _spelt(node.this)
    return node.sql("mysql").lower().replace("`", "")


def is_star(item: exp.Expr) -> bool:
    return isinstance(item, exp.Star) or (
        isinstance(item, exp.Column) and isinstance(item.this, exp.Star)
    )


def _is_aggregate(node: exp.Expr) -> bool:
    if isinstance(node, exp.AggFunc):
        return True
    if isinstance(node, exp.Anonymous):
        name = node.name.upper().removeprefix(PREFIX.upper())
        return name in functions.AGGREGATES or name == "ANY_VALUE"
    return False


def _walk(node: exp.Expr, aggregates: bool) -> Iterator[exp.Expr]:
    """Nodes of this query alone; into aggregates, and windows, only if asked to."""
    queue = [node]
    while queue:
        item = queue.pop()
        yield item
        if isinstance(item, exp.Query) or (not aggregates and _is_aggregate(item)):
            continue
        children = [child for child in item.iter_expressions() if child is not None]
        if isinstance(item, exp.Window):
            children = [c for c in children if c is not item.this] + list(
                item.this.iter_expressions()
            )
        queue += reversed(children)


def aggregates(node: exp.Expr) -> bool:
    return any(_is_aggregate(item) for item in _walk(node, aggregates=False))


def _columns(node: exp.Expr) -> Iterator[exp.Column]:
    return (item for item in _walk(node, aggregates=True) if isinstance(item, exp.Column))


def _bare_columns(node: exp.Expr) -> Iterator[exp.Column]:
    return (item for item in _walk(node, aggregates=False) if isinstance(item, exp.Column))


def _first_bare(node: exp.Expr, keys: set[str], names: set[str]) -> exp.Column | None:
    """A column of *node* that is neither grouped by nor inside an aggregate."""
    queue = [node]
    while queue:
        item = queue.pop()
        if _is_aggregate(item) or isinstance(item, exp.Query) or _spelt(item) in keys:
            continue
        if isinstance(item, exp.Column):
            if isinstance(item.this, exp.Star) or item.name.lower() not in names:
                return item
            continue
        children = [child for child in item.iter_expressions() if child is not None]
        if isinstance(item, exp.Alias):
            children = [item.this]
        if isinstance(item, exp.Window) and _is_aggregate(item.this):
            children = [c for c in children if c is not item.this] + list(
                item.this.iter_expressions()
            )
        queue += reversed(children)
    return None


def ordinal(node: exp.Expr) -> int | None:
    if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
        return int(node.this)
    return None


def _dotted(column: exp.Column) -> str:
    return f"{column.table}.{column.name}" if column.table else column.name
