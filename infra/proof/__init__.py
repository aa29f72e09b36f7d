"""The signed log of a ledger: sealing its events, keys and signatures, and what is served of it."""
