"""Measurements beside what a user would pick instead, interleaved in one run: a command a file, all on random weights."""
