"""Rows that are there already: read, put together, run and delivered in order."""
