"""MariaDB as MySQL's stand-in: a private server of our own, one database per sample."""

from __future__ import annotations

from ._databases import MariaDB, open_mariadb

__all__ = ["MariaDB", "open_mariadb"]
