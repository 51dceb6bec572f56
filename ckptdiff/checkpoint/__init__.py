"""Checkpoints (spec section 3.1): which files belong to one, and which tensors stand against each other."""
