"""What training changed: counts, ranks and pictures of the difference between two checkpoints."""
