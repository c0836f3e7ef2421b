"""From a folder of videos to lists, classes and a recipe that `videorl train` runs."""
