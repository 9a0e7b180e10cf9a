"""The device: its profile, footprint, calibration and link, and the takeover of its client id."""
