-- What was signed when the keys of a log changed, with those of before and those of after: so that anyone who has the
-- keys of before can follow to the present ones, and verify what was signed before.
CREATE TABLE log_handovers (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    size            bigint NOT NULL,
    -- The keys of before.
    verifier_keys   text[] NOT NULL,
    note            text NOT NULL,
    PRIMARY KEY (ledger_id, generation, size)
);
ALTER TABLE log_handovers ENABLE ROW LEVEL SECURITY;
ALTER TABLE log_handovers FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON log_handovers TO sparkledger_api USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON log_handovers TO sparkledger_worker USING (true);
GRANT SELECT ON log_handovers TO sparkledger_api;
GRANT SELECT, INSERT ON log_handovers TO sparkledger_worker;
