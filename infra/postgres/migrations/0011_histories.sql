-- The identities of a ledger's log, and what is known about whether this database still has it whole.
--
-- `log_id` names the log for ever. A history names one generation of it: the next begins when a loss is accepted, after a
-- restore or a failover that lost events, because positions may mean other events from then on.

ALTER TABLE ledgers ADD COLUMN log_id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid();

CREATE TABLE histories (
    ledger_id       int NOT NULL,
    generation      int NOT NULL CHECK (generation > 0),
    history         uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    began_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The last position that it has in common with the generation before, if that is known.
    common_position bigint,
    -- The history that is continued. It may be one that this database has never had: it was lost whole.
    continues       uuid,
    PRIMARY KEY (ledger_id, generation)
);

-- Ledgers from before this migration have a first history, too. Row-level security would hide them from their owner.
ALTER TABLE ledgers NO FORCE ROW LEVEL SECURITY;
INSERT INTO histories (ledger_id, generation) SELECT ledger_id, 1 FROM ledgers;
ALTER TABLE ledgers FORCE ROW LEVEL SECURITY;

-- Ledgers of which an anchor was written outside the database: for these, a missing anchor is no first run.
CREATE TABLE anchored_ledgers (
    ledger_id       int PRIMARY KEY,
    since           timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What the worker found when it compared the log with its anchor, in the database that `database` identifies.
CREATE TABLE history_checks (
    ledger_id           int PRIMARY KEY,
    database            text NOT NULL,
    -- Why the log is not the one that was anchored; null if it is.
    problem             text,
    anchored_generation int,
    anchored_history    uuid,
    anchored_position   bigint,
    anchored_event_id   uuid,
    anchored_at         timestamptz,
    checked_at          timestamptz NOT NULL DEFAULT clock_timestamp()
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['histories', 'anchored_ledgers', 'history_checks'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger ON %I TO sparkledger_api
            USING (ledger_id = (SELECT bound_ledger()))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;
GRANT SELECT ON histories, anchored_ledgers, history_checks TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT ON histories TO sparkledger_log;
GRANT INSERT, DELETE ON anchored_ledgers TO sparkledger_worker;
GRANT INSERT, UPDATE, DELETE ON history_checks TO sparkledger_worker;

-- Every ledger has a history from its first moment.
CREATE FUNCTION begin_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO histories (ledger_id, generation) VALUES (NEW.ledger_id, 1);
    RETURN NULL;
END $$;
CREATE TRIGGER begin_history AFTER INSERT ON ledgers
    FOR EACH ROW WHEN (NEW.served_by IS NULL) EXECUTE FUNCTION begin_history();

-- The next generation begins with the event that says so, in the same transaction: with no other way to begin one, the
-- log itself names every history that it ever had.
CREATE FUNCTION continue_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    said jsonb := convert_from(NEW.body, 'UTF8')::jsonb;
BEGIN
    INSERT INTO histories (ledger_id, generation, history, began_at, common_position, continues)
    VALUES (NEW.ledger_id, (said ->> 'generation')::int, (said ->> 'history')::uuid, NEW.recorded_at,
            (said ->> 'common_position')::bigint,
            coalesce(said ->> 'lost_history', said ->> 'previous_history')::uuid);
    -- The loss is accepted: the anchor of before proves nothing any more.
    DELETE FROM anchored_ledgers WHERE ledger_id = NEW.ledger_id;
    DELETE FROM history_checks WHERE ledger_id = NEW.ledger_id;
    NOTIFY sparkledger_keys;
    RETURN NULL;
END $$;
CREATE TRIGGER continue_history AFTER INSERT ON events
    FOR EACH ROW WHEN (NEW.type = 'LogRestarted' AND current_user <> 'sparkledger_mover')
    EXECUTE FUNCTION continue_history();
GRANT DELETE ON anchored_ledgers, history_checks TO sparkledger_log;

-- Which database this is, as far as anyone can tell who asks it: another server, another timeline, a restart, which a
-- restored copy of the files needs, and a restored dump, which creates the table of events again, all show.
CREATE FUNCTION database_identity() RETURNS text LANGUAGE sql STABLE
RETURN concat_ws(
    '/',
    (pg_control_system()).system_identifier,
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
    extract(epoch FROM pg_postmaster_start_time()),
    pg_relation_filenode('events')
);

-- How many ledgers cannot be written to here, because they have lost events or because nobody has looked yet; and how
-- many there are. A session of the API would see its own alone.
CREATE FUNCTION stopped_ledgers(OUT stopped bigint, OUT ledgers bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT count(*) FILTER (WHERE CASE WHEN c.ledger_id IS NULL THEN a.ledger_id ELSE length(c.problem) END IS NOT NULL),
           count(*)
    FROM ledgers l
    LEFT JOIN anchored_ledgers a ON a.ledger_id = l.ledger_id
    LEFT JOIN history_checks c
        ON c.ledger_id = l.ledger_id AND (pg_is_in_recovery() OR c.database = database_identity())
    WHERE l.served_by IS NULL
$$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION stopped_ledgers OWNER TO sparkledger_log;
ALTER FUNCTION begin_history OWNER TO sparkledger_log;
ALTER FUNCTION continue_history OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION begin_history, continue_history, stopped_ledgers FROM PUBLIC;
GRANT EXECUTE ON FUNCTION stopped_ledgers TO sparkledger_api, sparkledger_worker;
