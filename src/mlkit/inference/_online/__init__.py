"""Rows that come one by one from many callers: queued, gathered, run and answered."""
