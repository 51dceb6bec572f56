"""Patches and models in memory."""
