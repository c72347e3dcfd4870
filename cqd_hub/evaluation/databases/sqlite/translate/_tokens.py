"""A text of statements, cut and spelt so that the parser keeps MySQL's own function names."""

from __future__ import annotations

import re

from sqlglot import exp
from sqlglot.dialects.mysql import MySQL
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.tokens import Token, TokenType

from ._functions import FUNCTIONS, SPECIAL
from ._types import Refused, syntax

PREFIX = "my_"
_ESCAPES = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}
# Before a parenthesis these announce a list of columns, however a table is called.
_NAMING = {TokenType.INTO, TokenType.TABLE, TokenType.ALIAS, TokenType.WITH, TokenType.REFERENCES}
_DIALECT = MySQL()


def statements(sql: str) -> list[exp.Expr | Refused]:
    """The parsed statements in order, up to the first that is none.

    Function names that we know are marked with a prefix, so that the parser keeps them as they are
    instead of mapping them to its own. String literals are unescaped by MySQL's rules.
    """
    # Its parser knows no REPLACE; no key here could make a difference.
    sql = re.sub(r"\A(\s*)REPLACE(?=\s)", r"\1INSERT ", sql, flags=re.IGNORECASE)
    try:
        tokens = _DIALECT.tokenize(sql)
    except SqlglotError:
        return [syntax(sql.strip())]
    found: list[exp.Expr | Refused] = []
    for group in _groups(tokens):
        try:
            found.append(_parse(group, sql))
        except Refused as refused:
            found.append(refused)
            break
    return found


def _groups(tokens: list[Token]) -> list[list[Token]]:
    found: list[list[Token]] = [[]]
    for token in tokens:
        if token.token_type == TokenType.SEMICOLON:
            found.append([])
        else:
            found[-1].append(token)
    return [group for group in found if group]


def _parse(tokens: list[Token], sql: str) -> exp.Expr:
    try:
        trees = _DIALECT.parser().parse(_marked(tokens, sql), sql)
    except ParseError as error:
        near = error.errors[0] if error.errors else {}
        raise syntax(f"{near.get('highlight') or ''}{near.get('end_context') or ''}") from None
    except (SqlglotError, ValueError, TypeError, AttributeError, IndexError):
        raise syntax(sql[tokens[0].start :]) from None
    if len(trees) != 1 or trees[0] is None:
        raise syntax(sql[tokens[0].start :])
    return trees[0]


def _marked(tokens: list[Token], sql: str) -> list[Token]:
    found = list(tokens)
    # Types and lists of columns look like calls there.
    plain = tokens[0].text.upper() in ("CREATE", "ALTER")
    for place, token in enumerate(tokens):
        kind, name = token.token_type, token.text.upper()
        if kind == TokenType.STRING:
            found[place] = _like(token, kind, _unescaped(sql, token))
        elif kind == TokenType.SELECT:
            plain = False
        elif (
            not plain
            and (name in FUNCTIONS or name in SPECIAL)
            and kind != TokenType.IDENTIFIER
            and place + 1 < len(tokens)
            and tokens[place + 1].token_type == TokenType.L_PAREN
            and not (place and tokens[place - 1].token_type in _NAMING)
        ):
            found[place] = _like(token, TokenType.VAR, PREFIX + name)
    return found


def _like(token: Token, kind: TokenType, text: str) -> Token:
    return Token(kind, text, token.line, token.col, token.start, token.end, token.comments)


def _unescaped(sql: str, token: Token) -> str:
    source = sql[token.start : token.end + 1]
    mark = source[:1]
    if mark not in ("'", '"') or source[-1:] != mark:
        return token.text
    letters = iter(source[1:-1].replace(mark * 2, mark) if "\\" not in source else _pairs(source))
    return "".join(letters)


def _pairs(source: str) -> list[str]:
    mark, found, place = source[0], [], 1
    while place < len(source) - 1:
        letter = source[place]
        if letter == "\\" and place + 2 < len(source):
            place += 1
            letter = source[place]
            # Of a pattern's wildcards LIKE, not the literal, takes the backslash away.
            letter = f"\\{letter}" if letter in "%_" else _ESCAPES.get(letter, letter)
        elif letter == mark:
            place += 1
        found.append(letter)
        place += 1
    return found
