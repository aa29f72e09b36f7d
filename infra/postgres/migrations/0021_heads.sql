-- How many events each stream and creator of a log had at a position, and a chain of hashes over them (domain/heads.py).
CREATE TABLE log_heads (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    key             bytea NOT NULL CHECK (length(key) = 16),
    count           bigint NOT NULL,
    chain           bytea NOT NULL CHECK (length(chain) = 32),
    PRIMARY KEY (ledger_id, generation, key)
) WITH (fillfactor = 80);

-- As of which position they are, and the event that says so.
CREATE TABLE sealed_heads (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    upto            bigint NOT NULL,
    keys            bigint NOT NULL,
    root            bytea NOT NULL,
    position        bigint NOT NULL,
    sealed_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger_id, generation)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['log_heads', 'sealed_heads'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY one_ledger ON %I TO sparkledger_api USING (ledger_id = (SELECT bound_ledger()))', name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker USING (true)', name);
    END LOOP;
END $$;
GRANT SELECT ON log_heads, sealed_heads TO sparkledger_api, sparkledger_worker;
GRANT INSERT, UPDATE ON log_heads, sealed_heads TO sparkledger_worker;
