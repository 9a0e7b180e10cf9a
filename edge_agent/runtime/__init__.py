"""The modules in memory, and the engines that run them."""
