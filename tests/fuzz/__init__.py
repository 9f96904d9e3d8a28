"""Damaged and made-up files of every kind that the pack reads: ``python -m tests.fuzz --help``."""
