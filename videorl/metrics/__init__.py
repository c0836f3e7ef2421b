"""Metrics as pure functions on numpy arrays."""
