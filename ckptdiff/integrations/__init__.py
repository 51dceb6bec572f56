"""ckptdiff in other libraries: one thin module each, which imports that library."""
