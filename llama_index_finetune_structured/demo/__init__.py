"""The demo: the whole loop on the documentation of networkx, without a key, a GPU or a model hub."""
