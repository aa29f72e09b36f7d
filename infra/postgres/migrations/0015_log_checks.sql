-- What keeps looking whether the stored data still is what was signed, what it found, and what witnesses have signed.

-- How far each check of each log has come. A pass compares everything once.
CREATE TABLE log_checks (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    part            text NOT NULL,
    -- The pass under way: when it began, and the last position that it has compared.
    began_at        timestamptz NOT NULL,
    upto            bigint NOT NULL,
    -- When the last complete pass began: whatever is changed is noticed by this check before it is that old again.
    covered_since   timestamptz,
    PRIMARY KEY (ledger_id, generation, part)
) WITH (fillfactor = 50);

-- The first difference that each check has found. It stays after it was resolved, until the check finds another.
CREATE TABLE log_differences (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    part            text NOT NULL,
    -- Where: the position of the event, if it is one event's, and the table and column.
    position        bigint,
    place           text NOT NULL,
    message         text NOT NULL,
    -- When it was compared before and was as it should be, if it was.
    right_at        timestamptz,
    found_at        timestamptz NOT NULL,
    -- When a complete pass found no difference any more.
    resolved_at     timestamptz,
    PRIMARY KEY (ledger_id, generation, part)
);

-- What each witness has signed of each log, and what it answered last.
CREATE TABLE log_witnesses (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    witness         text NOT NULL,
    size            bigint NOT NULL,
    cosigned_at     timestamptz,
    -- Why it has not signed the checkpoint that it was asked to sign last; null if it has.
    problem         text,
    PRIMARY KEY (ledger_id, generation, witness)
) WITH (fillfactor = 50);

-- Checkpoints that witnesses have signed, with their signatures.
CREATE TABLE witnessed_checkpoints (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    size            bigint NOT NULL,
    note            text NOT NULL,
    witnesses       int NOT NULL,
    witnessed_at    timestamptz NOT NULL,
    PRIMARY KEY (ledger_id, generation, size)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['log_checks', 'log_differences', 'log_witnesses', 'witnessed_checkpoints'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger_or_public ON %I TO sparkledger_api
            USING (ledger_id = (SELECT bound_ledger()) OR (ledger_id, generation) IN (
                SELECT t.ledger_id, t.generation FROM log_trees t WHERE t.public
            ))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;
GRANT SELECT ON log_checks, log_differences, log_witnesses, witnessed_checkpoints
    TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE, DELETE ON log_checks, log_differences, log_witnesses, witnessed_checkpoints TO sparkledger_worker;

-- Whether the log of any ledger is not sealed any more, or differs from what was signed, in its present generation: how
-- the service is, which the API tells without a key.
CREATE OR REPLACE FUNCTION is_sealing_stopped() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM log_trees t
        WHERE (t.stopped IS NOT NULL OR EXISTS (
            SELECT FROM log_differences d
            WHERE d.ledger_id = t.ledger_id AND d.generation = t.generation AND d.resolved_at IS NULL
        )) AND NOT EXISTS (
            SELECT FROM histories h WHERE h.ledger_id = t.ledger_id AND h.generation > t.generation
        )
    )
$$;

-- Metrics are of the whole service: of all ledgers together, in their present generations.
--
--   sealed, waiting   events that a checkpoint covers, and that none covers yet
--   oldest            when the oldest event that no checkpoint covers yet was recorded
--   covered_since     since when everything was compared: the oldest of all passes
--   witnessed_at      when the oldest of the newest cosignatures, of the logs that have any, was made
--   stopped           logs that are not sealed any more; `differences`: what checks have found and was not resolved
CREATE FUNCTION log_figures(
    OUT sealed bigint, OUT waiting bigint, OUT oldest timestamptz, OUT stopped bigint, OUT differences bigint,
    OUT covered_since timestamptz, OUT witnessed_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT coalesce(sum(coalesce(t.checkpoint_size, 0)), 0)::bigint,
           coalesce(sum(greatest(h.head - coalesce(t.checkpoint_size, 0), 0)), 0)::bigint,
           min(n.recorded_at), count(t.stopped), coalesce(sum(d.open), 0)::bigint, min(c.covered_since),
           min(w.cosigned_at)
    FROM log_trees t
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS head FROM events e WHERE e.ledger_id = t.ledger_id
    ) h
    LEFT JOIN events n ON n.ledger_id = t.ledger_id AND n.position = coalesce(t.checkpoint_size, 0) + 1
    CROSS JOIN LATERAL (
        SELECT count(*) AS open FROM log_differences d
        WHERE d.ledger_id = t.ledger_id AND d.generation = t.generation AND d.resolved_at IS NULL
    ) d
    CROSS JOIN LATERAL (
        SELECT min(coalesce(c.covered_since, c.began_at)) AS covered_since FROM log_checks c
        WHERE c.ledger_id = t.ledger_id AND c.generation = t.generation
    ) c
    CROSS JOIN LATERAL (
        SELECT max(w.cosigned_at) AS cosigned_at FROM log_witnesses w
        WHERE w.ledger_id = t.ledger_id AND w.generation = t.generation
    ) w
    WHERE NOT EXISTS (
        SELECT FROM histories h WHERE h.ledger_id = t.ledger_id AND h.generation > t.generation
    )
$$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION is_sealing_stopped OWNER TO sparkledger_log;
ALTER FUNCTION log_figures OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION is_sealing_stopped, log_figures FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_sealing_stopped, log_figures TO sparkledger_api, sparkledger_worker;
