-- The signed log of each ledger: its tree, in tiles, and its newest checkpoint. Nothing of an event is stored here but
-- the hash of its entry; entries are computed from the rows, so that a row that was changed no longer fits its hash.

-- One row for each generation of a ledger's log.
CREATE TABLE log_trees (
    ledger_id       int NOT NULL,
    generation      int NOT NULL CHECK (generation > 0),
    -- The ledger's name, by which anyone who has no key asks for a public log.
    ledger          text NOT NULL,
    -- The log's name for verifiers. It is fixed when the log begins.
    origin          text NOT NULL UNIQUE,
    verifier_keys   text[] NOT NULL,
    -- Whether the log is served to everyone, without a key.
    public          boolean NOT NULL,
    -- How many events are in the tiles, and the root of their tree.
    size            bigint NOT NULL,
    root            bytea NOT NULL,
    -- What is served: the newest signed checkpoint. Its tiles were committed before it was.
    checkpoint_size bigint,
    checkpoint      text,
    checkpoint_at   timestamptz,
    -- Why the sealer has stopped; null while it seals.
    stopped         text,
    PRIMARY KEY (ledger_id, generation)
) WITH (fillfactor = 50);

-- The last tile of a level grows, all others are full. A tile may be served as far as it is filled.
CREATE TABLE log_tiles (
    ledger_id       int NOT NULL,
    generation      int NOT NULL,
    level           smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    index           bigint NOT NULL CHECK (index >= 0),
    hashes          bytea NOT NULL CHECK (length(hashes) BETWEEN 32 AND 8192 AND length(hashes) % 32 = 0),
    PRIMARY KEY (ledger_id, generation, level, index)
);
-- Hashes cannot be compressed.
ALTER TABLE log_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

ALTER TABLE log_trees ENABLE ROW LEVEL SECURITY;
ALTER TABLE log_trees FORCE ROW LEVEL SECURITY;
ALTER TABLE log_tiles ENABLE ROW LEVEL SECURITY;
ALTER TABLE log_tiles FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger_or_public ON log_trees TO sparkledger_api
    USING (public OR ledger_id = (SELECT bound_ledger()));
CREATE POLICY one_ledger_or_public ON log_tiles TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()) OR (ledger_id, generation) IN (
        SELECT t.ledger_id, t.generation FROM log_trees t WHERE t.public
    ));
CREATE POLICY every_ledger ON log_trees TO sparkledger_worker, sparkledger_log USING (true);
CREATE POLICY every_ledger ON log_tiles TO sparkledger_worker USING (true);
GRANT SELECT ON log_trees, log_tiles TO sparkledger_api, sparkledger_worker;
GRANT SELECT ON log_trees TO sparkledger_log;
GRANT INSERT, UPDATE ON log_trees, log_tiles TO sparkledger_worker;

-- Parts of an entry, as docs/proof.md defines it. They are the same as in domain/log_entry.py, which seals.
CREATE FUNCTION entry_text(value text) RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN CASE
    WHEN value IS NULL THEN '\x00'::bytea
    ELSE '\x01'::bytea || substring(int4send(octet_length(value)) FROM 3) || convert_to(value, 'UTF8')
END;
CREATE FUNCTION entry_uuid(value uuid) RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN CASE WHEN value IS NULL THEN '\x00'::bytea ELSE '\x01'::bytea || uuid_send(value) END;
CREATE FUNCTION entry_time(value timestamptz) RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN int8send((extract(epoch FROM value) * 1000000)::bigint);
CREATE FUNCTION entry_bytes(value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN int4send(length(value)) || sha256(value);

-- Entries of a log as a bundle of tlog-tiles, each with its length before it. The API serves public logs without being
-- bound to a ledger, so that it could not read the rows itself; an entry discloses nothing of them. Of an earlier
-- generation there are those that it has in common with the next one: at later positions there are other events now.
CREATE FUNCTION log_entries(
    of_ledger int, of_generation int, first bigint, last bigint, OUT entries bigint, OUT bundle bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT count(*), coalesce(string_agg(
        '\x0041'::bytea || x.lead
        || substring(sha256('sparkledger/stream/v1'::bytea || '\x0a'::bytea || uuid_send(x.stream_id) || x.place) FROM 1 FOR 16)
        || substring(sha256('sparkledger/creator/v1'::bytea || '\x0a'::bytea || uuid_send(x.creator_stream) || x.place) FROM 1 FOR 16)
        || sha256(
            x.lead || uuid_send(x.log_id) || x.place || uuid_send(x.stream_id) || int4send(x.version)
            || entry_text(x.type) || int2send(x.type_version) || entry_time(x.recorded_at) || entry_time(x.effective_at)
            || sha256(
                x.lead || uuid_send(x.event_id) || entry_uuid(x.actor_key) || entry_text(x.actor_role)
                || entry_text(x.actor_subject) || entry_text(x.source) || uuid_send(x.command_id)
                || entry_uuid(x.causation_id) || entry_text(x.correlation_id) || entry_text(x.traceparent)
                || entry_text(x.creator_id) || entry_text(x.video_id) || entry_bytes(x.body)
                || CASE
                    WHEN x.sealed IS NULL THEN '\x00'::bytea
                    ELSE '\x01'::bytea || uuid_send(x.key_id) || x.commitment || entry_bytes(x.sealed)
                END
            )
        ), ''::bytea ORDER BY x.position), ''::bytea)
    FROM (
        SELECT e.*, l.log_id, int8send(e.position) AS place, substring(int2send(e.format) FROM 2) AS lead
        FROM events e
        JOIN ledgers l ON l.ledger_id = e.ledger_id
        WHERE e.ledger_id = of_ledger AND e.position BETWEEN first AND last AND last - first < 256
        AND EXISTS (
            SELECT FROM log_trees t
            WHERE t.ledger_id = of_ledger AND t.generation = of_generation AND last <= t.size
            AND (t.public OR of_ledger = bound_ledger())
        )
        AND NOT EXISTS (
            SELECT FROM histories h
            WHERE h.ledger_id = of_ledger AND h.generation > of_generation AND h.common_position < last
        )
    ) x
$$;

-- Whether the log of any ledger is not sealed any more, in its present generation: how the service is, which the API
-- tells without a key.
CREATE FUNCTION is_sealing_stopped() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM log_trees t
        WHERE t.stopped IS NOT NULL AND NOT EXISTS (
            SELECT FROM histories h WHERE h.ledger_id = t.ledger_id AND h.generation > t.generation
        )
    )
$$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION is_sealing_stopped OWNER TO sparkledger_log;
ALTER FUNCTION log_entries OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION log_entries, is_sealing_stopped FROM PUBLIC;
GRANT EXECUTE ON FUNCTION log_entries, is_sealing_stopped TO sparkledger_api, sparkledger_worker;
