"""Whether a broker does what a site needs: ``s2m3 broker check``, and what ``s2m3 deploy`` tries."""
