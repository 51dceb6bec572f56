"""Reports and overlaps as charts and HTML pages."""
