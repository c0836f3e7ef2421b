"""Data sets made ready for training: checked, cut into short chunks, listed from the annotations of public sets."""
