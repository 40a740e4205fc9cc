"""The commands of `recs`, one module a theme."""
