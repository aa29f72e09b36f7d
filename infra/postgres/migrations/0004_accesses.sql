-- Who read or exported the trail, or asked the question, and what: a log of its own, never in the ledger.
-- No foreign key: its check would lock the ledger's row, which every append waits for.
CREATE TABLE accesses (
    ledger_id       int NOT NULL,
    -- Ordered in time, as UUIDv7 is.
    access_id       uuid NOT NULL,
    -- What reads of an hour that are told together have in common; its own for whatever stands alone.
    together        uuid NOT NULL DEFAULT gen_random_uuid(),
    at              timestamptz NOT NULL DEFAULT now(),
    -- Absent for who sits at the machine and uses the command line.
    key_id          uuid,
    role            text NOT NULL,
    route           text NOT NULL,
    query           jsonb NOT NULL,
    format          text NOT NULL,
    request_id      text,
    -- More than one where the reads of an hour are told together.
    reads           int NOT NULL DEFAULT 1,
    row_count       bigint NOT NULL,
    -- Absent while it is under way, and for good where its process was killed.
    complete        boolean,
    ended_at        timestamptz,
    -- Why, where it is an attempt that was refused; and from where, encrypted under a key of the ledger's. An erasure
    -- takes away where the creator's own keys came from.
    refused         text,
    sealed          bytea,
    -- Whether it counts the equal reads of a minute; then it is added to until the minute is over.
    counted         boolean NOT NULL DEFAULT false,
    -- What was read or asked for, where it is one: to find who read it.
    code_id         uuid,
    creator_id      text,
    video_id        text,
    PRIMARY KEY (ledger_id, access_id),
    UNIQUE (ledger_id, together),
    CHECK (sealed IS NULL OR refused IS NOT NULL)
);
CREATE INDEX accesses_at ON accesses USING brin (at);
CREATE INDEX accesses_key ON accesses (ledger_id, key_id, access_id);
CREATE INDEX accesses_route ON accesses (ledger_id, route, access_id);
CREATE INDEX accesses_code ON accesses (ledger_id, code_id, access_id) WHERE code_id IS NOT NULL;
CREATE INDEX accesses_creator ON accesses (ledger_id, creator_id, access_id) WHERE creator_id IS NOT NULL;
CREATE INDEX accesses_video ON accesses (ledger_id, video_id, access_id) WHERE video_id IS NOT NULL;
CREATE INDEX accesses_reason ON accesses (ledger_id, refused, access_id) WHERE refused IS NOT NULL;
CREATE INDEX accesses_sealed ON accesses (ledger_id, key_id) WHERE sealed IS NOT NULL;

ALTER TABLE accesses ENABLE ROW LEVEL SECURITY;
ALTER TABLE accesses FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON accesses FOR SELECT TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY one_ledger_adds ON accesses FOR INSERT TO sparkledger_api
    WITH CHECK (ledger_id = (SELECT bound_ledger()));
-- What has ended stands; only the reads of an hour, or of a minute, are added to. Clocks may differ a little.
CREATE POLICY one_ledger_ends ON accesses FOR UPDATE TO sparkledger_api
    USING (
        ledger_id = (SELECT bound_ledger())
        AND (ended_at IS NULL OR role = 'subscriber' OR (counted AND at > now() - interval '10 minutes'))
    )
    WITH CHECK (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON accesses TO sparkledger_worker, sparkledger_log USING (true);

GRANT SELECT, INSERT, UPDATE (reads, row_count, complete, ended_at) ON accesses TO sparkledger_api;
GRANT SELECT ON accesses TO sparkledger_worker;
GRANT SELECT, UPDATE (sealed), DELETE ON accesses TO sparkledger_log;

-- Forget what was kept long enough; return how many. No login of the program deletes an entry that is younger.
CREATE FUNCTION purge_accesses(keep_days int, at_most int) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    deleted int;
BEGIN
    DELETE FROM accesses
    WHERE (ledger_id, access_id) IN (
        SELECT ledger_id, access_id
        FROM accesses
        WHERE at < now() - make_interval(days => greatest(keep_days, 400))
        LIMIT at_most
    );
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION purge_accesses OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION purge_accesses FROM PUBLIC;
GRANT EXECUTE ON FUNCTION purge_accesses TO sparkledger_worker;
