"""What holds modules in memory and runs them."""
