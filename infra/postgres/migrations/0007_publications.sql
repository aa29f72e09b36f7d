-- How far each ledger is published to Kafka, for people and alarms to see. The publisher itself never reads it: what it
-- goes on from is written in Kafka, in the transaction of the events.

CREATE TABLE publications (
    ledger_id       int PRIMARY KEY REFERENCES ledgers,
    destination     text NOT NULL,
    position        bigint NOT NULL,
    state           text NOT NULL CHECK (state IN ('publishing', 'retrying', 'stopped')),
    errors          bigint NOT NULL DEFAULT 0,
    error           text,
    changed_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20); -- a row is updated all day long: the free space lets each version stay in its block

ALTER TABLE publications ENABLE ROW LEVEL SECURITY;
ALTER TABLE publications FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON publications TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON publications TO sparkledger_worker, sparkledger_log
    USING (true);
GRANT SELECT ON publications TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT, UPDATE, DELETE ON publications TO sparkledger_worker;

-- Which publisher leads: its generation, and when it last said that it does. One that says nothing for some seconds is
-- replaced, by another generation.
CREATE TABLE publisher_leases (
    destination     text PRIMARY KEY,
    generation      bigint NOT NULL,
    renewed_at      timestamptz NOT NULL
) WITH (fillfactor = 20);
GRANT SELECT, INSERT, UPDATE ON publisher_leases TO sparkledger_worker;

-- Metrics are of the whole service: sums over ledgers, by destination, and no ledger's own figures.
CREATE FUNCTION publication_lag()
RETURNS TABLE (destination text, published bigint, waiting bigint, oldest timestamptz, errors bigint, stopped boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT p.destination, sum(p.position)::bigint, sum(greatest(h.head - p.position, 0))::bigint,
           min(n.recorded_at), max(p.errors), bool_or(p.state = 'stopped')
    FROM publications p
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS head FROM events e WHERE e.ledger_id = p.ledger_id
    ) h
    LEFT JOIN events n ON n.ledger_id = p.ledger_id AND n.position = p.position + 1
    GROUP BY p.destination
    ORDER BY p.destination
$$;
GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION publication_lag OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION publication_lag FROM PUBLIC;
GRANT EXECUTE ON FUNCTION publication_lag TO sparkledger_api, sparkledger_worker;
