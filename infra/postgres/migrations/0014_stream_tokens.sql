-- Tokens for streams, from their first use on: how often each was used. A token itself is stored nowhere.
CREATE TABLE stream_tokens (
    ledger_id       int NOT NULL,
    token_id        uuid NOT NULL,
    key_id          uuid NOT NULL,
    uses            bigint NOT NULL,
    used_at         timestamptz NOT NULL,
    PRIMARY KEY (ledger_id, token_id)
);
CREATE INDEX stream_tokens_used ON stream_tokens (used_at);
ALTER TABLE stream_tokens ENABLE ROW LEVEL SECURITY;
ALTER TABLE stream_tokens FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON stream_tokens TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON stream_tokens TO sparkledger_worker USING (true);
GRANT SELECT, INSERT, UPDATE (uses, used_at) ON stream_tokens TO sparkledger_api;
GRANT SELECT, DELETE ON stream_tokens TO sparkledger_worker;
