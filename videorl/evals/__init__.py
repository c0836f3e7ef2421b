"""Registered evaluations: `step` makes rows from batches, `finish` metrics from all rows.

One with `merge` gets the rows of whole samples, all views of each, and gives one row a sample before they are gathered.
"""
