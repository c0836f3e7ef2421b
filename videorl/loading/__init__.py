"""From samples to batches: in which order, by which processes, and what becomes of samples that cannot be read."""
