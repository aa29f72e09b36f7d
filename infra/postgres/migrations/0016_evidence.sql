-- Checkpoints that evidence was made for: with the checkpoint, the same evidence can be made again, to the byte.
CREATE TABLE evidence_checkpoints (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    size            bigint NOT NULL CHECK (size > 0),
    note            text NOT NULL,
    kept_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger_id, generation, size)
);
ALTER TABLE evidence_checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE evidence_checkpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON evidence_checkpoints TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger())) WITH CHECK (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON evidence_checkpoints TO sparkledger_worker USING (true);
GRANT SELECT, INSERT ON evidence_checkpoints TO sparkledger_api;
GRANT SELECT ON evidence_checkpoints TO sparkledger_worker;
