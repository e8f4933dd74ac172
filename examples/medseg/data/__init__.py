"""Data sets: their cases, the readers of their files, and their preparation from the releases."""
