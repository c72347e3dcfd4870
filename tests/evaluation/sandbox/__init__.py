"""Sandbox tests; a package so that they share the fixture's helpers."""
