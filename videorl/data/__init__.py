"""From annotations to samples: the registered data sets, and the readers of published lists."""
