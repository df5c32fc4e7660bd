"""What the bytes of a picture file say beyond its pixels: whether its stream is whole, and what its colours mean."""
