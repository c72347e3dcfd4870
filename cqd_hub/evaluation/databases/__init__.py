"""Databases for agents: SQLite speaking MySQL, and MariaDB on a private socket."""
