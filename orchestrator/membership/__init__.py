"""Which devices there are and what each may be trusted with: births, failure detection, flap damping."""
