"""Texts for many clips: narrations of the rows of a list and of videos from end to end, and texts in other words."""
