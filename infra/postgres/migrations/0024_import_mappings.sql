-- How sheets of one source are read, saved under a name. What it means is checked by the API when it is saved and used.

CREATE TABLE import_mappings (
    ledger_id       int NOT NULL REFERENCES ledgers,
    name            text NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    content         jsonb NOT NULL CHECK (octet_length(content::text) <= 16384),
    saved_at        timestamptz NOT NULL DEFAULT now(),
    -- The key that saved it last.
    key_id          uuid NOT NULL REFERENCES api_keys,
    PRIMARY KEY (ledger_id, name)
);

ALTER TABLE import_mappings ENABLE ROW LEVEL SECURITY;
ALTER TABLE import_mappings FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON import_mappings TO sparkledger_api USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON import_mappings TO sparkledger_worker USING (true);

GRANT SELECT ON import_mappings TO sparkledger_api, sparkledger_worker;
GRANT INSERT, UPDATE, DELETE ON import_mappings TO sparkledger_api;
