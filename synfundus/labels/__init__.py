"""Labels of an image: which there are, how often, how they read, which ones to generate."""
