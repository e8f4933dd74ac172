"""Predictions, their scores, and tables of them."""
