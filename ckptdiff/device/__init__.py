"""Work on torch devices."""
