"""Figures of results and of attention."""
