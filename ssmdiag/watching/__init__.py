"""The memory of a model while it trains: margins, half-lives and laws every N steps."""
