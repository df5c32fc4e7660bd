"""Looking at every generated image: a verdict with named reasons and figures, and what is written of it."""
