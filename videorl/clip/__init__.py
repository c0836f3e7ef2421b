"""From frames to what a model sees: which frames, which part of them, how they are changed."""
