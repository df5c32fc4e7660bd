"""Named metrics and where they go."""
