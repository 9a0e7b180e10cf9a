"""A whole site on one machine: processes, links that can be cut, an observer, the demo, and replays."""
