-- Moves of ledgers from one server to another, while they are served.
--
-- The ledger is copied, and what is changed meanwhile is noted here and copied after. At the end, one transaction of the
-- source holds everything that writes to the ledger, for about a second. It ends with the name of the other server in
-- the ledger's row; until that is committed the source serves the ledger, and never again after it. The target serves it
-- once it is given the number that this transaction has published, and that it alone knew before.

-- Ledgers that leave this server, or have left it.
CREATE TABLE departures (
    ledger_id       int PRIMARY KEY REFERENCES ledgers,
    target          text NOT NULL,
    began_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Once the other server has everything: the number of the copy, and the last position.
    stage           uuid,
    position        bigint,
    moved_at        timestamptz,
    CHECK (num_nulls(stage, position, moved_at) IN (0, 3))
);

-- Rows of such ledgers that were changed, by their primary keys.
CREATE TABLE departure_changes (
    ledger_id       int NOT NULL REFERENCES departures ON DELETE CASCADE,
    table_name      text NOT NULL,
    key             jsonb NOT NULL
);
CREATE INDEX departure_changes_of_ledger ON departure_changes (ledger_id);

-- Ledgers that come to this server, or have come.
CREATE TABLE arrivals (
    ledger_id       int PRIMARY KEY REFERENCES ledgers ON DELETE CASCADE,
    source          text NOT NULL,
    source_number   int NOT NULL,
    began_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Once everything is here: the number of the copy, and the last position.
    stage           uuid,
    position        bigint,
    arrived_at      timestamptz,
    -- Which generations of the signed log everyone can read, once the ledger is served here.
    public_generations int[] NOT NULL DEFAULT '{}',
    -- Whether the publisher of the source was fenced since, so that what it published is known.
    fenced          boolean NOT NULL DEFAULT false
);
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['departures', 'departure_changes', 'arrivals'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;
GRANT SELECT ON departures, arrivals TO sparkledger_log, sparkledger_worker;
GRANT INSERT ON departure_changes TO sparkledger_log;
GRANT UPDATE (target) ON departures TO sparkledger_log; -- a row lock asks for it; no statement uses it
GRANT UPDATE (arrived_at) ON arrivals TO sparkledger_log;
GRANT UPDATE (fenced) ON arrivals TO sparkledger_worker;
GRANT UPDATE (served_by) ON ledgers TO sparkledger_log;
GRANT UPDATE (public) ON log_trees TO sparkledger_log;
GRANT EXECUTE ON FUNCTION confirm_commits TO sparkledger_log;

-- The trigger of every table while a ledger leaves: it notes what is changed, waits while the last of it is copied, and
-- lets nothing be changed of what is not served any more. But for three things: reads that were answered before are still
-- entered, and copied after; what a worker clears away is no loss; and epochs end, in which keys of creators are sealed.
-- A move that is given up has no row first, and no triggers a moment later.
CREATE FUNCTION note_departure() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    changed jsonb := CASE WHEN TG_OP = 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
    of_ledger int := (changed ->> 'ledger_id')::int;
    left_at timestamptz;
BEGIN
    SELECT d.moved_at INTO left_at FROM departures d WHERE d.ledger_id = of_ledger FOR SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF left_at IS NOT NULL AND NOT (TG_TABLE_NAME = 'accesses' AND TG_OP <> 'DELETE') THEN
        IF is_worker() AND (TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND TG_TABLE_NAME IN ('creator_keys', 'erasures'))) THEN
            RETURN NULL;
        END IF;
        RAISE read_only_sql_transaction USING MESSAGE = 'another server serves the ledger';
    END IF;
    INSERT INTO departure_changes (ledger_id, table_name, key)
    SELECT of_ledger, TG_TABLE_NAME, jsonb_object_agg(k.name, changed -> k.name) FROM unnest(TG_ARGV) AS k (name);
    RETURN NULL;
END $$;

-- Where a ledger has gone, for those who tell the other server; null while it is served here. What is found no failover
-- may take back, because the other server serves the ledger from then on.
CREATE FUNCTION departure_of(of_ledger int, OUT target text, OUT stage uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    SELECT d.target, d.stage INTO target, stage
    FROM departures d
    WHERE d.ledger_id = of_ledger AND d.moved_at IS NOT NULL;
    IF FOUND THEN
        PERFORM confirm_commits();
    END IF;
END $$;

-- Serve a ledger whose source serves it no more: that is proven by the number of the copy, which is published by the
-- transaction that ends it there. Answers whether that is so; again, it changes nothing.
CREATE FUNCTION complete_arrival(of_ledger int, of_stage uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    found_at timestamptz;
BEGIN
    SELECT a.arrived_at INTO found_at FROM arrivals a WHERE a.ledger_id = of_ledger AND a.stage = of_stage FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF found_at IS NULL THEN
        UPDATE arrivals SET arrived_at = clock_timestamp() WHERE ledger_id = of_ledger;
        UPDATE ledgers SET served_by = NULL WHERE ledger_id = of_ledger;
        UPDATE log_trees t SET public = true
        FROM arrivals a
        WHERE a.ledger_id = of_ledger AND t.ledger_id = of_ledger AND t.generation = ANY (a.public_generations);
        NOTIFY sparkledger_keys;
    END IF;
    RETURN true;
END $$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION note_departure OWNER TO sparkledger_log;
ALTER FUNCTION departure_of OWNER TO sparkledger_log;
ALTER FUNCTION complete_arrival OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION note_departure, departure_of, complete_arrival FROM PUBLIC;
GRANT EXECUTE ON FUNCTION departure_of, complete_arrival TO sparkledger_api, sparkledger_mover;

-- The role that copies, and removes copies. It can delete nothing of a ledger that this server serves.
DO $$
DECLARE
    name text;
    protected boolean;
BEGIN
    FOR name, protected IN
        SELECT c.relname, c.relrowsecurity FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ledger_id' AND NOT a.attisdropped
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON %I TO sparkledger_mover', name);
        IF name <> 'events' THEN
            EXECUTE format('GRANT UPDATE ON %I TO sparkledger_mover', name);
        END IF;
        IF protected THEN
            EXECUTE format('CREATE POLICY moves ON %I TO sparkledger_mover USING (true)', name);
        END IF;
        IF name = 'ledgers' THEN
            CREATE POLICY deletes_copies ON ledgers AS RESTRICTIVE FOR DELETE TO sparkledger_mover
                USING (served_by IS NOT NULL);
        ELSIF protected AND name NOT IN ('departures', 'departure_changes', 'arrivals') THEN
            EXECUTE format(
                'CREATE POLICY deletes_copies ON %1$I AS RESTRICTIVE FOR DELETE TO sparkledger_mover USING (EXISTS ('
                'SELECT FROM ledgers l WHERE l.ledger_id = %1$I.ledger_id AND l.served_by IS NOT NULL))', name);
        END IF;
    END LOOP;
END $$;
GRANT SELECT ON this_server, master_keys, key_epochs TO sparkledger_mover;
GRANT SELECT, UPDATE ON SEQUENCE webhook_attempts_attempt_id_seq TO sparkledger_mover;
GRANT EXECUTE ON FUNCTION confirm_commits TO sparkledger_mover;
