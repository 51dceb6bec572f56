"""How a patch is made and how its target is rebuilt (spec sections 8 and 10)."""
