"""The three skills of the quickstart and its plain English, written by a seeded generator."""
