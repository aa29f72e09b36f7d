"""Who calls: keys, tokens, and what is told of their calls."""
