"""Which device should hold what: greedy, refined, proven, and what a placement costs. Pure; knows no live device."""
