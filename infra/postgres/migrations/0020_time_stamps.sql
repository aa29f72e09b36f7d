-- Checkpoints with the time stamp of an authority (RFC 3161) over their bytes, for evidence bundles.
CREATE TABLE stamped_checkpoints (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    size            bigint NOT NULL CHECK (size > 0),
    -- The signed note to the byte, and the authority's response over it.
    note            text NOT NULL,
    response        bytea NOT NULL,
    stamped_at      timestamptz NOT NULL,
    stored_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger_id, generation, size)
);
ALTER TABLE stamped_checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE stamped_checkpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON stamped_checkpoints TO sparkledger_api USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON stamped_checkpoints TO sparkledger_worker USING (true);
GRANT SELECT ON stamped_checkpoints TO sparkledger_api;
GRANT SELECT, INSERT ON stamped_checkpoints TO sparkledger_worker;
