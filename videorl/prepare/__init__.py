"""Data sets made ready for training: videos cut into short chunks, and lists from the annotations of public sets."""
