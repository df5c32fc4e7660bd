"""Pictures people look at: contact sheets, charts."""
