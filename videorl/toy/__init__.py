"""Videos of moving shapes, in the layouts of published data sets, to try and test everything on."""
