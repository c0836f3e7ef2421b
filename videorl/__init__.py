"""A config-driven toolkit for video-understanding research."""
