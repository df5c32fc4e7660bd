"""Sets of generated images: what they say of themselves, how they lie in a folder, how they are written."""
