"""Training and evaluation, the same for every system; concrete components are reached only through the registries."""
