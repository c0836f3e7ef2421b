"""Reading videos, making clips, batches and workers."""
