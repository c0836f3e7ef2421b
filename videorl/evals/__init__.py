"""Registered evaluations: `step` makes rows from batches, `finish` makes metrics from all rows."""
