"""Heads for example models."""
