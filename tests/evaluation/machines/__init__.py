"""Tests of machines; a package so that they share the fixture's helpers."""
