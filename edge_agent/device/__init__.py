"""What a device is and measures of itself: profile, footprint, calibration, link."""
