"""API speaks: it parses what comes in, calls the domain through the ledger, and answers."""
