"""Files, threads and signals of this machine. Nothing here knows the format."""
