-- The log and what stands beside it. Only durable tables are migrated; views are rebuilt from the log.
-- Nothing here is newer than PostgreSQL 15, and no extension is used.

-- A ledger's row is locked by every append and never updated but when the ledger moves to another server: an updated
-- row would rot under a long snapshot.
CREATE TABLE ledgers (
    ledger_id       int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9._:@-]{1,128}$' AND name NOT IN ('.', '..')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    -- The key of fingerprints and claims, wrapped by the master key. It never changes: claims rest on it.
    fingerprint_key bytea NOT NULL,
    -- The server that serves the ledger, if it is another one: it has moved there, or is being copied from there.
    served_by       text
);

-- Which ledger a session of the API sees, and which key a caller of `append` writes with, is proven and not claimed: by
-- a token that `authenticate` hands out to a caller that presents the hash of a key. A login that was stolen, and no key with
-- it, sees nothing and writes nothing.
--
-- A token is a keyed hash under a secret of this database that no login of the program can read. It depends on no
-- session, so it holds behind a pooler, too. The functions name every table with its schema and have their bodies
-- parsed when they are created, so a caller's search_path means nothing to them.
CREATE TABLE token_secret (secret bytea NOT NULL);
INSERT INTO token_secret SELECT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
GRANT SELECT ON token_secret TO sparkledger_log;

-- The token with which a session of the API is bound to a ledger.
CREATE FUNCTION ledger_token(ledger int) RETURNS bytea LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    secret bytea := (SELECT s.secret FROM public.token_secret s);
BEGIN
    RETURN pg_catalog.substring(pg_catalog.sha256(secret OPERATOR(pg_catalog.||) pg_catalog.sha256(
        secret OPERATOR(pg_catalog.||) '\x01'::bytea OPERATOR(pg_catalog.||) pg_catalog.int4send(ledger))), 1, 16);
END $$;

-- The token with which a caller of `append` writes: for one key of one ledger. `append` computes it the same way.
CREATE FUNCTION key_token(ledger int, key uuid) RETURNS bytea LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    secret bytea := (SELECT s.secret FROM public.token_secret s);
BEGIN
    RETURN pg_catalog.substring(pg_catalog.sha256(secret OPERATOR(pg_catalog.||) pg_catalog.sha256(
        secret OPERATOR(pg_catalog.||) '\x02'::bytea OPERATOR(pg_catalog.||) pg_catalog.int4send(ledger)
        OPERATOR(pg_catalog.||) pg_catalog.uuid_send(key))), 1, 16);
END $$;

-- Whether the login is a worker's, or the owner's: those see every ledger, and need no token for that.
CREATE FUNCTION is_worker() RETURNS boolean LANGUAGE sql STABLE
RETURN pg_has_role(session_user, 'sparkledger_worker', 'MEMBER');

-- Whether the login is the owner's, who may take on every role of the program: it needs no key to write.
CREATE FUNCTION is_owner() RETURNS boolean LANGUAGE sql STABLE
RETURN pg_has_role(session_user, 'sparkledger_worker', 'MEMBER')
    AND pg_has_role(session_user, 'sparkledger_api', 'MEMBER');

-- The ledger that this session is bound to: `sparkledger.ledger` names it and proves it, as `LEDGER:TOKEN`.
CREATE FUNCTION bound_ledger() RETURNS int LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    setting text := pg_catalog.current_setting('sparkledger.ledger', true);
    ledger text := pg_catalog.split_part(setting, ':', 1);
BEGIN
    IF ledger IS NULL OR pg_catalog.length(ledger) OPERATOR(pg_catalog.=) 0 THEN
        RETURN NULL;
    END IF;
    IF pg_catalog.encode(public.ledger_token(ledger::int), 'hex') OPERATOR(pg_catalog.=)
        pg_catalog.split_part(setting, ':', 2) OR public.is_worker()
    THEN
        RETURN ledger::int;
    END IF;
    RETURN NULL;
END $$;

-- The events that may be recorded, and by keys of which roles: `sparkledger migrate` fills it from the program's list.
CREATE TABLE event_types (
    type            text NOT NULL,
    type_version    smallint NOT NULL,
    roles           text[] NOT NULL,
    PRIMARY KEY (type, type_version)
);
GRANT SELECT ON event_types TO sparkledger_api, sparkledger_worker, sparkledger_log;

-- No foreign key and no CHECK, here and below: the append, the only way in, has the ledger's row locked, counts the
-- positions, and refuses a sealed part without its key. The foreign keys of four rows would be a quarter of its time, and
-- a CHECK is parsed again by every statement that inserts.
CREATE TABLE events (
    ledger_id       int NOT NULL,
    position        bigint NOT NULL,
    stream_id       uuid NOT NULL,
    version         int NOT NULL,
    event_id        uuid NOT NULL,
    type            text NOT NULL,
    type_version    smallint NOT NULL,
    recorded_at     timestamptz NOT NULL,
    effective_at    timestamptz NOT NULL,
    creator_stream  uuid NOT NULL,
    actor_key       uuid,
    actor_role      text NOT NULL,
    actor_subject   text,
    source          text NOT NULL,
    command_id      uuid NOT NULL,
    correlation_id  text,
    causation_id    uuid,
    traceparent     text,
    -- Whom and what the event concerns: with these each event is understood without the others of its stream.
    creator_id      text,
    video_id        text,
    -- The sealed part's key; absent where nothing is sealed.
    key_id          uuid,
    format          smallint NOT NULL,
    -- SHA-256 over a salt and the sealed plaintext; the salt lies inside the sealed part.
    commitment      bytea,
    -- Both bodies are kept exactly as they were hashed, hence not jsonb.
    body            bytea NOT NULL,
    sealed          bytea,
    PRIMARY KEY (ledger_id, position),
    UNIQUE (ledger_id, stream_id, version)
);

-- Which codes a creator has: asked when the permission is switched. Touched only when a code is generated.
CREATE INDEX events_codes_of_creator ON events (ledger_id, creator_stream, position) WHERE type = 'CodeGenerated';

-- Idempotency: what a request with a key came to. Never a body; purged after its retention.
CREATE TABLE commands (
    ledger_id       int NOT NULL,
    key             bytea NOT NULL,
    request_hash    bytea NOT NULL,
    first_position  bigint NOT NULL,
    last_position   bigint NOT NULL,
    recorded_at     timestamptz NOT NULL,
    PRIMARY KEY (ledger_id, key)
);
-- What is purged is found by it; a summary of blocks would tell less and less, for purged rows' room is used again.
CREATE INDEX commands_recorded ON commands (recorded_at);

-- A name that one stream holds at a time: a creator's id, a video's slot, a secret; by keyed hash.
CREATE TABLE claims (
    ledger_id       int NOT NULL,
    claim           bytea NOT NULL,
    stream_id       uuid NOT NULL,
    PRIMARY KEY (ledger_id, claim)
);

-- The key that a creator's sealed parts are under, wrapped by the master key; `creator` is the keyed hash of the id.
CREATE TABLE creator_keys (
    ledger_id       int NOT NULL REFERENCES ledgers,
    key_id          uuid NOT NULL,
    creator         bytea NOT NULL,
    wrapped         bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ledger_id, key_id),
    UNIQUE (ledger_id, creator)
);

CREATE TABLE api_keys (
    key_id          uuid PRIMARY KEY,
    ledger_id       int NOT NULL REFERENCES ledgers,
    hash            bytea NOT NULL UNIQUE,
    name            text,
    role            text NOT NULL CHECK (role IN ('admin', 'operator', 'creator', 'brand', 'auditor', 'subscriber')),
    creator_ids     text[] NOT NULL DEFAULT '{}',
    brand_ids       text[] NOT NULL DEFAULT '{}',
    advertiser_ids  text[] NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      uuid,
    expires_at      timestamptz,
    revoked_at      timestamptz,
    idempotency     bytea,
    request_hash    bytea,
    UNIQUE (ledger_id, idempotency)
);

-- Refused attempts that are counted and not recorded one by one: unknown secrets, repeats within the hour.
CREATE TABLE refused_attempts (
    ledger_id       int NOT NULL REFERENCES ledgers,
    hour            timestamptz NOT NULL,
    reason          text NOT NULL,
    key_id          uuid NOT NULL,
    count           bigint NOT NULL,
    PRIMARY KEY (ledger_id, hour, reason, key_id)
);

-- How far each view has read each ledger, and what became of the view; the views' own tables are in schema views.
CREATE TABLE view_versions (
    view                text PRIMARY KEY,
    version             int NOT NULL,
    state               text NOT NULL CHECK (state IN ('following', 'building', 'failed')),
    error               text,
    failed_ledger_id    int,
    failed_position     bigint,
    changed_at          timestamptz NOT NULL DEFAULT now()
);

-- One row a ledger, updated with every page: the free space lets each new version stay in its block.
CREATE TABLE view_positions (
    view                text NOT NULL,
    version             int NOT NULL,
    ledger_id           int NOT NULL,
    position            bigint NOT NULL,
    recorded_at         timestamptz,
    PRIMARY KEY (view, version, ledger_id)
) WITH (fillfactor = 20);

ALTER TABLE view_positions ENABLE ROW LEVEL SECURITY;
ALTER TABLE view_positions FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON view_positions TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON view_positions TO sparkledger_worker
    USING (true);
GRANT SELECT ON view_versions, view_positions TO sparkledger_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON view_versions, view_positions TO sparkledger_worker;

CREATE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_user = 'sparkledger_mover' THEN
        RETURN NULL; -- row-level security lets it delete copies of ledgers that other servers serve
    END IF;
    RAISE EXCEPTION 'events are append-only: % is refused', TG_OP
        USING HINT = 'A wrong fact is answered by the command that undoes it, or by a note.';
END $$;
CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only();

-- Row-level security: the API sees the one ledger its session is bound to, the workers all, the append its own.
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ledgers', 'events', 'commands', 'claims', 'creator_keys', 'api_keys',
                                'refused_attempts'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger ON %I TO sparkledger_api
            USING (ledger_id = (SELECT bound_ledger()))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;
-- Workers have nothing to do with a ledger that another server serves.
ALTER POLICY every_ledger ON ledgers TO sparkledger_log;
CREATE POLICY served_here ON ledgers TO sparkledger_worker USING (served_by IS NULL);

GRANT SELECT ON ledgers, events, commands, claims, creator_keys, api_keys, refused_attempts
    TO sparkledger_api, sparkledger_worker, sparkledger_log;
GRANT INSERT ON events, commands, claims TO sparkledger_log;
GRANT UPDATE, DELETE ON claims TO sparkledger_log;
GRANT UPDATE (name) ON ledgers TO sparkledger_log; -- a row lock asks for it; no statement uses it
GRANT INSERT ON creator_keys TO sparkledger_api, sparkledger_worker;
GRANT INSERT, UPDATE (revoked_at) ON api_keys TO sparkledger_log;
GRANT INSERT, UPDATE (count) ON refused_attempts TO sparkledger_api, sparkledger_worker;
GRANT INSERT ON ledgers TO sparkledger_worker;
GRANT DELETE ON commands, refused_attempts TO sparkledger_worker;

-- Who presents a key is not known to belong to a ledger yet, so this one look-up goes around row-level security.
CREATE FUNCTION authenticate(presented bytea)
RETURNS TABLE (key_id uuid, ledger_id int, ledger_name text, name text, role text, creator_ids text[],
               brand_ids text[], advertiser_ids text[], created_at timestamptz, expires_at timestamptz,
               revoked_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT k.key_id, k.ledger_id, l.name, k.name, k.role, k.creator_ids, k.brand_ids, k.advertiser_ids,
           k.created_at, k.expires_at, k.revoked_at
    FROM api_keys k
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    WHERE k.hash = presented
$$;

-- `as_of` turns a time into a position: the last one recorded by then, 0 before the first. recorded_at never decreases
-- with position, so halving finds it with a few reads of the primary key and no index of its own.
--
-- An append takes its moment before its commit, so a moment of just now may still get an event: a query about one
-- waits for the appends under way, and only then looks. The same moment then always gives the same position.
CREATE FUNCTION position_at(of_ledger int, moment timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    low bigint := 0;
    high bigint;
    middle bigint;
BEGIN
    IF of_ledger IS DISTINCT FROM bound_ledger() THEN
        RETURN 0; -- as row-level security has it, which this function's owner is not under
    END IF;
    IF moment > clock_timestamp() - interval '1 minute' THEN
        PERFORM 1 FROM ledgers WHERE ledger_id = of_ledger FOR SHARE;
    END IF;
    high := coalesce((SELECT max(position) FROM events WHERE ledger_id = of_ledger), 0);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        IF (SELECT recorded_at <= moment FROM events WHERE ledger_id = of_ledger AND position = middle) THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    RETURN low;
END $$;

-- What `append` takes besides the callers' ledgers, keys and roles. It comes as rows, for PL/pgSQL opens each array that it
-- is handed: 36 arrays of columns took a single command half as long again. `caller` is the number of a caller, from 1.
CREATE TYPE append_caller AS (
    key             bytea, -- of idempotency, with the hash of the request; or null
    hash            bytea,
    token           bytea, -- that its API key was presented
    before          timestamptz, -- what was decided holds only until then; or null
    first           int, -- which of the events is its first, and how many it has
    n               int
);
CREATE TYPE append_read AS (
    caller          int,
    stream          uuid,
    version         int -- at which the stream must stand; 0 for one that must not exist
);
CREATE TYPE append_event AS (
    caller          int,
    stream          uuid,
    version         int,
    id              uuid,
    type            text,
    type_version    int,
    effective       timestamptz, -- null: when it is recorded
    creator         uuid,
    causation       uuid,
    key_id          uuid,
    commitment      bytea,
    body            bytea,
    sealed          bytea,
    subject         text,
    source          text,
    command         uuid,
    correlation     text,
    traceparent     text,
    creator_id      text,
    video_id        text
);
CREATE TYPE append_claim AS (
    caller          int,
    claim           bytea,
    expected        uuid, -- the stream that must hold it; null: none
    new             uuid -- the stream that shall hold it; null: none
);

-- The one way into the log: a batch of callers, each appended whole or told why not.
--
-- The order of its statements is its correctness. First the ledgers' rows are locked, sorted, so that no two calls can
-- deadlock; only then, in later statements whose snapshots are taken after the lock, is anything compared. Only the
-- callers accepted are numbered and inserted, so a refused one leaves no hole.
--
--   c_…       one element a caller: its ledger, API key and role. What follows refers to a caller by its number, so that
--             nothing can be written into another ledger, or as somebody else, than was checked.
--   callers   one row a caller
--   reads     the versions at which streams must stand
--   news      the events, those of a caller side by side
--   names     the claims: compared with `expected`, then set to `new`
--   changing  whether a claim that a stream holds is to pass to another stream, or to be freed
--
-- Answers one row for each caller that was refused or replayed (outcome, a, b, stream, actual; at: the moment that has
-- passed `before`), and one row with outcome 'base' for each ledger: a = the last position before, b = the ledger,
-- at = the moment of recording.
--
-- Its plans must not be those of the empty tables a ledger begins with: its caller sets `plan_cache_mode` and
-- the planner's choices for the session, which costs nothing, where a SET of the function's own costs 8 us each.
CREATE FUNCTION append(
    c_ledger int[], c_api_key uuid[], c_role text[], callers append_caller[], reads append_read[], news append_event[],
    names append_claim[], changing boolean)
RETURNS TABLE (caller int, outcome text, a bigint, b bigint, stream uuid, actual int, at timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    locked int[] := ARRAY[c_ledger[1]];
    one_ledger boolean := true;
    refused int[] := '{}';
    place int[];
    ledger int;
    found_ledgers int;
    base bigint;
    moment timestamptz;
    last_moment timestamptz;
    r record;
BEGIN
    IF c_ledger[1] <> ANY (c_ledger) THEN
        one_ledger := false;
        SELECT array_agg(DISTINCT x ORDER BY x) INTO locked FROM unnest(c_ledger) x;
    END IF;
    PERFORM 1 FROM ledgers l
    WHERE l.ledger_id = ANY (locked) AND l.served_by IS NULL
    ORDER BY l.ledger_id FOR NO KEY UPDATE;
    GET DIAGNOSTICS found_ledgers = ROW_COUNT;
    IF found_ledgers <> cardinality(locked) THEN
        IF EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = ANY (locked) AND l.served_by IS NOT NULL) THEN
            RAISE read_only_sql_transaction USING MESSAGE = 'another server serves the ledger';
        END IF;
        RAISE foreign_key_violation USING MESSAGE = 'there is no such ledger';
    END IF;
    moment := clock_timestamp();

    -- Where one ledger's log ends; of several, each is looked at in its turn.
    IF one_ledger THEN
        SELECT e.position, e.recorded_at INTO base, last_moment
        FROM events e WHERE e.ledger_id = locked[1] ORDER BY e.position DESC LIMIT 1;
    END IF;

    -- Who is turned down, and why; where several reasons hold, the first in this order is a caller's answer.
    FOR r IN
        -- What no caller of the program sends: a forged row. Nothing of the batch is recorded then.
        SELECT 0 AS rank, f.caller AS i, f.why, NULL::bigint AS p, NULL::bigint AS q, NULL::uuid AS s, NULL::int AS v,
               NULL::timestamptz AS t
        FROM (
            SELECT e.caller, CASE
                WHEN e.source IS DISTINCT FROM
                    CASE WHEN c_role[e.caller] IN ('creator', 'brand', 'clock') THEN c_role[e.caller] ELSE 'operator' END
                THEN 'the source of an event follows from the role of its actor'
                WHEN NOT EXISTS (
                    SELECT FROM event_types t
                    WHERE t.type = e.type AND t.type_version = e.type_version AND c_role[e.caller] = ANY (t.roles)
                ) THEN 'this role records no event of this type and version'
                -- Only an operator, an administrator and the clock say that something took effect earlier. A minute of
                -- grace covers what was decided just before the batch. A creator who extends or revokes a code before
                -- the clock has recorded its end records that end, and those of its campaigns: they are true by the
                -- clock, and decide nothing.
                WHEN e.effective < moment - interval '1 minute'
                    AND c_role[e.caller] NOT IN ('operator', 'admin', 'clock')
                    AND NOT (
                        e.type = 'Expired'
                        OR (e.type = 'CampaignEnded'
                            AND convert_from(e.body, 'UTF8')::jsonb ->> 'cause' = 'code_expired')
                    )
                THEN 'this role does not say when an event took effect'
                -- A worker records in the name of a key whose import it carries out. No row of a sheet erases anybody.
                WHEN e.type = 'CreatorErased' AND is_worker() AND NOT is_owner()
                THEN 'a worker records no erasure'
                WHEN (e.key_id IS NULL) <> (e.sealed IS NULL) OR (e.key_id IS NULL) <> (e.commitment IS NULL)
                THEN 'what is sealed has a key and a commitment'
            END AS why
            FROM unnest(news) AS e
            OFFSET 0
        ) f
        WHERE f.why IS NOT NULL
        UNION ALL
        -- 1: The same command came before: its first answer stands.
        -- 2: The writer has a key of this ledger and this role, which is still valid (a cache may outlive it by a
        --    second), and proves by its token that it was presented; the clock, whose login is a worker's, has none. A
        --    worker that carries out an import presents that in place of the token of the key that has sent it.
        -- 3: Decided inside a window that has ended by the moment that would be recorded: decide again, by that moment.
        SELECT CASE WHEN m.key IS NOT NULL THEN 1 WHEN k.refused THEN 2 ELSE 3 END, c.i,
               CASE WHEN m.key IS NULL THEN CASE WHEN k.refused THEN 'key' ELSE 'conflict' END
                    WHEN m.request_hash = c.hash THEN 'replay' ELSE 'mismatch' END,
               m.first_position, m.last_position, NULL, NULL, CASE WHEN m.key IS NULL AND NOT k.refused THEN w.moment END
        FROM unnest(callers) WITH ORDINALITY AS c (key, hash, token, before, first, n, i)
        LEFT JOIN commands m ON m.ledger_id = c_ledger[c.i] AND m.key = c.key
        CROSS JOIN LATERAL (
            SELECT NOT (c_role[c.i] = 'clock' AND c_api_key[c.i] IS NULL AND is_worker())
            AND NOT EXISTS (
                SELECT 1 FROM api_keys k
                WHERE k.key_id = c_api_key[c.i] AND k.ledger_id = c_ledger[c.i]
                AND (k.role = c_role[c.i] OR (k.kind = 'token' AND is_trusted_role(k.ledger_id, c_role[c.i])))
                AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > moment)
                AND (is_owner() OR c.token = (
                    SELECT substring(sha256(o.secret || sha256(
                        o.secret || '\x02'::bytea || int4send(c_ledger[c.i]) || uuid_send(c_api_key[c.i])
                    )) FROM 1 FOR 16)
                    FROM token_secret o
                ) OR carries_out_import(c_ledger[c.i], c_api_key[c.i], c_role[c.i], c.token))
            ) AS refused
            OFFSET 0
        ) k
        CROSS JOIN LATERAL (
            SELECT CASE WHEN c.before IS NOT NULL THEN greatest(moment, CASE WHEN one_ledger THEN last_moment ELSE (
                SELECT e.recorded_at FROM events e WHERE e.ledger_id = c_ledger[c.i] ORDER BY e.position DESC LIMIT 1
            ) END) END AS moment
            OFFSET 0
        ) w
        WHERE m.key IS NOT NULL OR k.refused OR c.before <= w.moment
        UNION ALL
        SELECT 4, v.caller, 'conflict', NULL, NULL, v.stream, v.v, NULL
        FROM (
            SELECT d.*, coalesce((
                SELECT e.version FROM events e
                WHERE e.ledger_id = c_ledger[d.caller] AND e.stream_id = d.stream
                ORDER BY e.version DESC LIMIT 1
            ), -1) AS v
            FROM unnest(reads) AS d
            OFFSET 0
        ) v
        WHERE v.v IS DISTINCT FROM v.version AND NOT (v.v = -1 AND v.version = 0)
        UNION ALL
        SELECT 5, k.caller, 'taken', NULL, NULL, m.stream_id, NULL, NULL
        FROM unnest(names) AS k
        LEFT JOIN claims m ON m.ledger_id = c_ledger[k.caller] AND m.claim = k.claim
        WHERE m.stream_id IS DISTINCT FROM k.expected
        ORDER BY 1, 2
    LOOP
        IF r.rank = 0 THEN
            RAISE insufficient_privilege USING MESSAGE = r.why;
        END IF;
        IF r.i <> ALL (refused) THEN
            refused := refused || r.i::int;
            caller := r.i; outcome := r.why; a := r.p; b := r.q; stream := r.s; actual := r.v; at := r.t;
            RETURN NEXT;
        END IF;
    END LOOP;

    -- Where each event goes past the last one of its ledger. For one ledger and nobody refused it is its own number.
    IF cardinality(refused) > 0 OR NOT one_ledger THEN
        SELECT array_agg(x.place ORDER BY x.n) INTO place
        FROM (
            SELECT y.n, CASE WHEN y.accepted THEN
                       row_number() OVER (PARTITION BY c_ledger[y.caller], y.accepted ORDER BY y.n)
                   END AS place
            FROM (
                SELECT e.caller, e.caller <> ALL (refused) AS accepted, row_number() OVER () AS n FROM unnest(news) AS e
            ) y
        ) x;
    END IF;

    FOREACH ledger IN ARRAY locked LOOP
        IF NOT one_ledger THEN
            SELECT e.position, e.recorded_at INTO base, last_moment
            FROM events e WHERE e.ledger_id = ledger ORDER BY e.position DESC LIMIT 1;
        END IF;
        base := coalesce(base, 0);
        at := greatest(moment, last_moment);
        INSERT INTO events (
            ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at,
            creator_stream, actor_key, actor_role, actor_subject, source, command_id, correlation_id, causation_id,
            traceparent, creator_id, video_id, key_id, format, commitment, body, sealed)
        SELECT ledger, base + coalesce(place[e.n], e.n), e.stream, e.version, e.id, e.type, e.type_version, at,
               coalesce(e.effective, at), e.creator, c_api_key[e.caller], c_role[e.caller], e.subject, e.source,
               e.command, e.correlation, e.causation, e.traceparent, e.creator_id, e.video_id, e.key_id, 1,
               e.commitment, e.body, e.sealed
        FROM unnest(news) WITH ORDINALITY AS e (
            caller, stream, version, id, type, type_version, effective, creator, causation, key_id, commitment, body,
            sealed, subject, source, command, correlation, traceparent, creator_id, video_id, n)
        WHERE place IS NULL OR (place[e.n] IS NOT NULL AND c_ledger[e.caller] = ledger);
        INSERT INTO commands (ledger_id, key, request_hash, first_position, last_position, recorded_at)
        SELECT ledger, c.key, c.hash, base + coalesce(place[c.first], c.first),
               base + coalesce(place[c.first], c.first) + c.n - 1, at
        FROM unnest(callers) WITH ORDINALITY AS c (key, hash, token, before, first, n, i)
        WHERE c.key IS NOT NULL
        AND (place IS NULL OR (place[c.first] IS NOT NULL AND c_ledger[c.i] = ledger));
        caller := NULL; outcome := 'base'; a := base; b := ledger; stream := NULL; actual := NULL;
        RETURN NEXT;
    END LOOP;

    -- A claim that was just found free, under the lock, needs no ON CONFLICT, which would look it up once more.
    IF cardinality(names) > 0 THEN
        INSERT INTO claims (ledger_id, claim, stream_id)
        SELECT c_ledger[k.caller], k.claim, k.new
        FROM unnest(names) AS k
        WHERE k.expected IS NULL AND k.new IS NOT NULL AND k.caller <> ALL (refused);
    END IF;
    IF changing THEN
        UPDATE claims c SET stream_id = k.new
        FROM unnest(names) AS k
        WHERE k.expected IS NOT NULL AND k.new <> k.expected AND k.caller <> ALL (refused)
        AND c.ledger_id = c_ledger[k.caller] AND c.claim = k.claim;
        DELETE FROM claims c
        USING unnest(names) AS k
        WHERE k.expected IS NOT NULL AND k.new IS NULL AND k.caller <> ALL (refused)
        AND c.ledger_id = c_ledger[k.caller] AND c.claim = k.claim;
    END IF;
END $$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION append OWNER TO sparkledger_log;
ALTER FUNCTION authenticate OWNER TO sparkledger_log;
ALTER FUNCTION position_at OWNER TO sparkledger_log;
ALTER FUNCTION ledger_token OWNER TO sparkledger_log;
ALTER FUNCTION key_token OWNER TO sparkledger_log;
ALTER FUNCTION bound_ledger OWNER TO sparkledger_log;
REVOKE ALL ON FUNCTION ledger_token, key_token FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION append, authenticate, position_at FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append, authenticate, position_at TO sparkledger_api, sparkledger_worker;

CREATE SCHEMA views AUTHORIZATION sparkledger_worker;
GRANT USAGE ON SCHEMA views TO sparkledger_api;
