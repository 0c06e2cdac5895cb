"""Worked examples: ``python -m arena.examples.NAME``."""
