"""Labels of an image: schema, counts, captions, and plans of what to generate."""
