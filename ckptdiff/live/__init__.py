"""Patches made of models in memory, and applied to them in place."""
