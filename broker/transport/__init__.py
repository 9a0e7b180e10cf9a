"""The way to a broker: the port that services use, paho behind it, and its in-memory twin."""
