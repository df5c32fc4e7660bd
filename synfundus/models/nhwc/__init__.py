"""NHWC memory on a GPU: networks that keep it, and the group norm they need for it."""
