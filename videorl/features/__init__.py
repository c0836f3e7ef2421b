"""Features of videos by a model of any system: windows of every video, in order, to files that others read."""
