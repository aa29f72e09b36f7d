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

-- Who is signed in to the console: the keyed hash of what a browser's cookie says, and the key or token that the person
-- signed in with, sealed under a key that is not in the database.
CREATE TABLE console_sessions (
    hash            bytea PRIMARY KEY,
    ledger_id       int NOT NULL,
    key_id          uuid NOT NULL,
    sealed          bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    used_at         timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX console_sessions_expire ON console_sessions (expires_at);
CREATE INDEX console_sessions_of_key ON console_sessions (ledger_id, key_id, created_at);
ALTER TABLE console_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE console_sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON console_sessions TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON console_sessions TO sparkledger_worker, sparkledger_log USING (true);
GRANT SELECT, INSERT, DELETE, UPDATE (sealed) ON console_sessions TO sparkledger_api;
GRANT SELECT, DELETE ON console_sessions TO sparkledger_worker;
GRANT SELECT, UPDATE (used_at) ON console_sessions TO sparkledger_log;

-- A cookie does not say which ledger it is for, so this look-up goes around row-level security, as that of keys does. It
-- finds nothing but for the hash of a whole cookie. With `used`, the session counts as used now.
CREATE FUNCTION console_session(presented bytea, used boolean, idle interval)
RETURNS TABLE (ledger_id int, key_id uuid, sealed bytea, expires_at timestamptz, served_by text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF used THEN
        UPDATE console_sessions s SET used_at = now()
        WHERE s.hash = presented AND s.used_at > now() - idle AND s.expires_at > now()
        AND EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = s.ledger_id AND l.served_by IS NULL);
    END IF;
    RETURN QUERY
        SELECT s.ledger_id, s.key_id, s.sealed, s.expires_at, l.served_by
        FROM console_sessions s
        JOIN ledgers l ON l.ledger_id = s.ledger_id
        WHERE s.hash = presented AND s.used_at > now() - idle AND s.expires_at > now();
END $$;
GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION console_session OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION console_session FROM PUBLIC;
GRANT EXECUTE ON FUNCTION console_session TO sparkledger_api;
