"""Reports of a comparison of arms: text, JSON, Markdown."""
