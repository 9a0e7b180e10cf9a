"""A whole site on one machine: processes, links that can be cut, an observer, the demo, and replays."""

NO_CACHE = "the agents keep no outputs (cache: 0): every node is computed"
"""The sentence of a command that measures a site, unless its agents' files ask for a cache (``site``)."""
