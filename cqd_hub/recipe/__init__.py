"""The recipe: what to evolve, from what, measured how."""
