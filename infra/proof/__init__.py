"""The signed log of a ledger: sealing its events, keys and signatures, the anchor, and what is served of it."""
