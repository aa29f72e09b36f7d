-- The keys of witnesses that have cosigned a log, for evidence bundles: also of those that are not asked any more.
CREATE TABLE witness_keys (
    ledger_id       int NOT NULL,
    verifier_key    text NOT NULL,
    first_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger_id, verifier_key)
);
ALTER TABLE witness_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE witness_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON witness_keys TO sparkledger_api USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON witness_keys TO sparkledger_worker USING (true);
GRANT SELECT ON witness_keys TO sparkledger_api;
GRANT SELECT, INSERT ON witness_keys TO sparkledger_worker;

-- How many witnesses have cosigned a checkpoint that evidence was made for. Their times bound those of events.
ALTER TABLE evidence_checkpoints ADD COLUMN witnesses int NOT NULL DEFAULT 0;
