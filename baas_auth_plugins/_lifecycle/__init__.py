"""When a token is fetched: one token's state, and the flows that change it. Nothing here does I/O."""
