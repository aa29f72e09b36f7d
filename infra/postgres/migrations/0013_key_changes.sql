-- How often keys of a ledger have changed: read after events, and before they are handed out. Anyone who finds it as it
-- was knows that no key was revoked before the events were recorded. A notification may come later, or be lost.
CREATE TABLE key_changes (
    ledger_id       int PRIMARY KEY,
    changes         bigint NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE key_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE key_changes FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON key_changes TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON key_changes TO sparkledger_worker, sparkledger_log USING (true);
GRANT SELECT ON key_changes TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE (changes) ON key_changes TO sparkledger_log;

CREATE FUNCTION count_key_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO key_changes AS c (ledger_id, changes) VALUES (NEW.ledger_id, 1)
    ON CONFLICT (ledger_id) DO UPDATE SET changes = c.changes + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER count_key_change AFTER UPDATE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION count_key_change();
CREATE TRIGGER count_key_change AFTER UPDATE ON api_key_hashes
    FOR EACH ROW EXECUTE FUNCTION count_key_change();

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION count_key_change OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION count_key_change FROM PUBLIC;
