"""Talking to the Hugging Face Hub: one patient client, references, verified downloads, commits."""
