"""``s2m3 bench memory``: what splitting and sharing save, counted exactly, and measured on real processes.

``mixes`` says which tasks are served together, ``counts`` counts weights, ``processes`` reads what the kernel says of a
process, ``unsplit`` is a process that holds one task's whole model, ``sides`` runs such processes and a site,
``measure`` compares the two, ``command`` prints.
"""
