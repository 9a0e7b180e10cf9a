"""Seconds to an answer, on real agents in real processes over shaped links: ``s2m3 bench latency``.

``settings`` has the machines and links, ``workloads`` the tasks and their inputs, and ``trial`` runs one site.
``compare`` compares split with cloud and local, ``branches`` parallel with sequential routing.
"""
