"""``s2m3 bench latency``: how long an answer takes, on real agents in real processes over links that are shaped.

``settings`` says what the machines and links are like, ``workloads`` what is asked, ``trial`` runs a site and asks it,
``compare`` sets split against cloud and local, ``branches`` parallel against sequential; ``command`` is the command.
"""
