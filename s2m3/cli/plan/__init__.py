"""``s2m3 plan``: where modules would go, without any device. ``document`` is the JSON, ``command`` the command line."""
