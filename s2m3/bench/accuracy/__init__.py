"""Accuracy of the split and the unsplit model on labelled data: ``s2m3 bench accuracy``.

``questions`` turns records into requests and answers into scores. ``run`` goes through one benchmark, and ``journal``
keeps its results so that it can be resumed. ``options`` and ``equivalence`` are tables of several runs.
"""
