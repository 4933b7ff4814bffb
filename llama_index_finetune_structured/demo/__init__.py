"""The demo: the whole loop on the documentation of the installed networkx, without a key, a GPU or a hub."""
