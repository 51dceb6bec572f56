"""Numbers about an update, without printing: which elements changed, how far, of what rank."""
