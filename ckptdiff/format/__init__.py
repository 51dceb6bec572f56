"""The bytes of the format (spec sections 2 to 6 and 9): they are read strictly and written canonically."""
