"""The memory that splitting and sharing save, counted exactly and measured on real processes: ``s2m3 bench memory``.

``mixes`` has the sets of tasks, and ``counts`` counts weights. ``processes`` reads a process's memory, ``unsplit`` is a
process that holds one task's whole model, ``sides`` runs such processes and a site, and ``measure`` compares the two.
"""
