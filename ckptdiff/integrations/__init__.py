"""ckptdiff in other libraries: one thin module for each, which imports that library."""
