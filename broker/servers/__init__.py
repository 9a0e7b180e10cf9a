"""Brokers that this project starts itself: the embedded one and Mosquitto."""
