"""Repos on the Hugging Face Hub."""
