"""Raw inputs and arrays as the families take them, and outputs as they leave."""
