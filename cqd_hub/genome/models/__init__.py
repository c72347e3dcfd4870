"""Base and experts as they lie on disk: names, kinds, vocabularies, adapters; slot by slot."""
