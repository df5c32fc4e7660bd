"""The stand-in GPU: CUDA builds of torch run without a GPU, and what they ask of one is counted. See README.md."""

MARK = "stand-in GPU: "
"""What a script prints before its document, in one line."""
