"""What a trained classifier says of videos that no list names, with the preprocessing of its run."""
