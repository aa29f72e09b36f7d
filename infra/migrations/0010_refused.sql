-- Refused attempts stand among the accesses: why, and from where, encrypted under a key of the ledger's.
ALTER TABLE accesses
    ADD COLUMN refused text,
    ADD COLUMN sealed bytea,
    ADD CHECK (sealed IS NULL OR refused IS NOT NULL);
