"""Fuzzing of everything that reads a patch: see README.md beside this file."""
