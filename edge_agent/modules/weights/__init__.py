"""Where weights come from, which of them are a module's, and how a module is identified."""
