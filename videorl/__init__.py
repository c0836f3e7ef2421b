"""Train and test video models on real video files."""

__version__ = "0.1.0"
