"""From a video file to its frames."""
