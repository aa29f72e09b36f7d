-- Events that a view was told to skip, for it cannot take them in: by whom, when and why. Never changed, never removed.

-- What is skipped is skipped by this version of the view: a newer one takes the event in again.
CREATE TABLE view_skips (
    ledger_id       int NOT NULL,
    view            text NOT NULL,
    version         int NOT NULL,
    position        bigint NOT NULL,
    -- Of the code or creator whose later events are skipped too; NULL where it is this event alone.
    stream_id       uuid,
    -- What the view stopped with.
    error           text NOT NULL,
    reason          text NOT NULL CHECK (reason <> ''),
    -- Who said so at the command line, and the database login they had there.
    skipped_by      text NOT NULL,
    login           text NOT NULL DEFAULT session_user,
    skipped_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ledger_id, view, version, position)
);

ALTER TABLE view_skips ENABLE ROW LEVEL SECURITY;
ALTER TABLE view_skips FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON view_skips TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON view_skips TO sparkledger_worker
    USING (true);
GRANT SELECT ON view_skips TO sparkledger_api;
GRANT SELECT, INSERT ON view_skips TO sparkledger_worker;

-- How often a view was rebuilt.
ALTER TABLE view_versions ADD COLUMN rebuilds int NOT NULL DEFAULT 0;

-- How far each view is, in all ledgers together, for the metrics. The API sees one ledger at a time, so this goes around
-- row-level security, and tells sums alone.
CREATE FUNCTION views_in_all_ledgers()
RETURNS TABLE (view text, version int, state text, rebuilds int, "position" bigint, behind_events bigint,
               behind_seconds float8)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH heads AS MATERIALIZED (
        SELECT l.ledger_id, h.position
        FROM ledgers l
        CROSS JOIN LATERAL (
            SELECT e.position FROM events e WHERE e.ledger_id = l.ledger_id ORDER BY e.position DESC LIMIT 1
        ) h
    )
    SELECT v.view, v.version, v.state, v.rebuilds, coalesce(sum(p.position), 0)::bigint,
           coalesce(sum(h.position - coalesce(p.position, 0)), 0)::bigint,
           greatest(max(extract(epoch FROM clock_timestamp() - next.recorded_at)), 0)::float8
    FROM view_versions v
    LEFT JOIN heads h ON true
    LEFT JOIN view_positions p ON p.view = v.view AND p.version = v.version AND p.ledger_id = h.ledger_id
    LEFT JOIN LATERAL (
        SELECT e.recorded_at
        FROM events e
        WHERE e.ledger_id = h.ledger_id AND e.position = coalesce(p.position, 0) + 1
    ) next ON h.position > coalesce(p.position, 0)
    GROUP BY v.view
    ORDER BY v.view
$$;

GRANT CREATE ON SCHEMA public TO sparkledger_worker;
ALTER FUNCTION views_in_all_ledgers OWNER TO sparkledger_worker;
REVOKE CREATE ON SCHEMA public FROM sparkledger_worker;
REVOKE ALL ON FUNCTION views_in_all_ledgers FROM PUBLIC;
GRANT EXECUTE ON FUNCTION views_in_all_ledgers TO sparkledger_api, sparkledger_worker;
