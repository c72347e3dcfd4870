"""Scores for individuals: engines, lm-eval tasks, sandboxes. Knows no archive."""
