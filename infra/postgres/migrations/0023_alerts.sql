-- Alerts: rules that say who is sent what, what each rule has found, and what was sent. And calendars.

CREATE TABLE alert_rules (
    rule_id         uuid PRIMARY KEY,
    ledger_id       int NOT NULL REFERENCES ledgers,
    -- The API key that it belongs to: it sends nothing any more once that is not valid.
    key_id          uuid NOT NULL REFERENCES api_keys,
    kind            text NOT NULL CHECK (kind IN ('ending', 'campaign_outlives_code', 'refused_attempts', 'stopped')),
    -- Of the kind `ending`: how many days before the end.
    days            int[] NOT NULL DEFAULT '{}',
    -- At most one: whose codes it is about. None: all that the key may see.
    creator_id      text,
    brand_id        text,
    advertiser_id   text,
    channel         text NOT NULL CHECK (channel IN ('email', 'chat')),
    -- An e-mail address or a URL, sealed under a key derived from the ledger's: the first is a person's, and the second
    -- may hold a secret.
    address         bytea NOT NULL CHECK (octet_length(address) <= 2048 + 28),
    name            bytea,
    zone            text NOT NULL,
    -- By the clock of that zone. Without `digest_at`, messages are sent at once.
    digest_at       time,
    quiet_from      time,
    quiet_until     time,
    created_at      timestamptz NOT NULL DEFAULT now(),
    disabled        text CHECK (disabled IN ('asked', 'key')),
    disabled_at     timestamptz,
    CHECK (num_nonnulls(creator_id, brand_id, advertiser_id) <= 1),
    CHECK ((quiet_from IS NULL) = (quiet_until IS NULL)),
    CHECK ((disabled IS NULL) = (disabled_at IS NULL))
);
CREATE INDEX alert_rules_of_ledger ON alert_rules (ledger_id, rule_id);

-- Written by the worker: how far each rule has looked, and what became of its messages.
CREATE TABLE alert_progress (
    rule_id         uuid PRIMARY KEY REFERENCES alert_rules ON DELETE CASCADE,
    ledger_id       int NOT NULL,
    -- Everything up to here was looked at, in this history of the log. Absent before the first look.
    position        bigint,
    history         uuid,
    -- The end of the log when the rule was created or enabled: what is no state is reported from then on.
    since           bigint NOT NULL,
    -- When its last message was made.
    made_at         timestamptz,
    sent            bigint NOT NULL DEFAULT 0,
    failed          bigint NOT NULL DEFAULT 0,
    sent_at         timestamptz,
    failed_at       timestamptz,
    error           text
) WITH (fillfactor = 50);

-- One message to one address. What it says is made from what its findings name, when it is sent.
CREATE TABLE alert_messages (
    message_id      uuid PRIMARY KEY,
    rule_id         uuid NOT NULL REFERENCES alert_rules ON DELETE CASCADE,
    ledger_id       int NOT NULL,
    test            boolean NOT NULL DEFAULT false,
    findings        int NOT NULL,
    -- `void`: nothing that it would have said was true any more.
    state           text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'dead', 'void')),
    made_at         timestamptz NOT NULL,
    attempts        int NOT NULL DEFAULT 0,
    first_at        timestamptz,
    last_at         timestamptz,
    next_at         timestamptz NOT NULL,
    error           text
);
CREATE INDEX alert_messages_of_rule ON alert_messages (rule_id, message_id);
CREATE INDEX alert_messages_due ON alert_messages (next_at) WHERE state = 'waiting';

-- What a rule has found. `finding` says it in a word, so that it is found once: a code, its end and the days before it.
CREATE TABLE alert_findings (
    rule_id         uuid NOT NULL REFERENCES alert_rules ON DELETE CASCADE,
    ledger_id       int NOT NULL,
    finding         text NOT NULL,
    code_id         uuid,
    ends_at         timestamptz,
    campaign_id     text,
    advertiser_id   text,
    -- Of an attempt, why it was refused; of something that stopped, what.
    reason          text,
    happened_at     timestamptz,
    found_at        timestamptz NOT NULL,
    -- Absent until it is in a message.
    message_id      uuid,
    PRIMARY KEY (rule_id, finding)
);
CREATE INDEX alert_findings_waiting ON alert_findings (rule_id, found_at) WHERE message_id IS NULL;
CREATE INDEX alert_findings_in_message ON alert_findings (message_id) WHERE message_id IS NOT NULL;

-- Calendars that programs read by a secret address. A calendar bears the right of its key, to read when codes end.
CREATE TABLE calendars (
    calendar_id     uuid PRIMARY KEY,
    ledger_id       int NOT NULL REFERENCES ledgers,
    key_id          uuid NOT NULL REFERENCES api_keys,
    -- The keyed hash of the secret in its address.
    hash            bytea NOT NULL UNIQUE,
    creator_id      text,
    brand_id        text,
    advertiser_id   text,
    name            bytea,
    created_at      timestamptz NOT NULL DEFAULT now(),
    read_at         timestamptz,
    CHECK (num_nonnulls(creator_id, brand_id, advertiser_id) <= 1)
);
CREATE INDEX calendars_of_ledger ON calendars (ledger_id, calendar_id);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['alert_rules', 'alert_progress', 'alert_messages', 'alert_findings', 'calendars'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format($policy$CREATE POLICY one_ledger ON %I TO sparkledger_api
            USING (ledger_id = (SELECT bound_ledger()))$policy$, name);
        EXECUTE format('CREATE POLICY every_ledger ON %I TO sparkledger_worker, sparkledger_log USING (true)', name);
    END LOOP;
END $$;

GRANT SELECT ON alert_rules, alert_progress, alert_messages, alert_findings, calendars
    TO sparkledger_api, sparkledger_worker;
GRANT INSERT, UPDATE, DELETE ON alert_rules TO sparkledger_api;
GRANT INSERT, UPDATE (position, since) ON alert_progress TO sparkledger_api;
GRANT INSERT, UPDATE (state, attempts, next_at) ON alert_messages TO sparkledger_api;
GRANT INSERT, DELETE, UPDATE (read_at) ON calendars TO sparkledger_api;
GRANT UPDATE (disabled, disabled_at) ON alert_rules TO sparkledger_worker;
GRANT UPDATE ON alert_progress TO sparkledger_worker;
GRANT INSERT, UPDATE, DELETE ON alert_messages, alert_findings TO sparkledger_worker;
GRANT SELECT ON alert_rules, alert_progress, alert_messages, calendars TO sparkledger_log;

-- The secret in an address does not say which ledger it is for, so this look-up goes around row-level security, as that
-- of keys does. It finds nothing but for the hash of a whole secret, and nothing once the calendar's key is not valid.
CREATE FUNCTION calendar_of(presented bytea)
RETURNS TABLE (calendar_id uuid, ledger_id int, ledger_token bytea, log_id uuid, ledger_name text, key_id uuid,
               role text, creator_ids text[], brand_ids text[], advertiser_ids text[], creator_id text, brand_id text,
               advertiser_id text, unread boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT c.calendar_id, c.ledger_id, ledger_token(c.ledger_id), l.log_id, l.name, k.key_id, k.role, k.creator_ids,
           k.brand_ids, k.advertiser_ids, c.creator_id, c.brand_id, c.advertiser_id,
           -- To a quarter of an hour, for calendars are read again and again; a standby keeps no note.
           NOT pg_is_in_recovery() AND (c.read_at IS NULL OR c.read_at < now() - interval '15 minutes')
    FROM calendars c
    JOIN ledgers l ON l.ledger_id = c.ledger_id
    JOIN api_keys k ON k.key_id = c.key_id
    WHERE c.hash = presented AND l.served_by IS NULL
    AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
$$;

-- For metrics, which are of the whole service.
CREATE FUNCTION alert_figures()
RETURNS TABLE (rules bigint, calendars bigint, waiting bigint, dead bigint, sent bigint, failed bigint,
               oldest timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT (SELECT count(*) FROM alert_rules r WHERE r.disabled IS NULL),
           (SELECT count(*) FROM calendars),
           (SELECT count(*) FROM alert_messages m JOIN alert_rules r USING (rule_id)
            WHERE m.state = 'waiting' AND r.disabled IS NULL),
           (SELECT count(*) FROM alert_messages m WHERE m.state = 'dead'),
           (SELECT coalesce(sum(p.sent), 0)::bigint FROM alert_progress p),
           (SELECT coalesce(sum(p.failed), 0)::bigint FROM alert_progress p),
           (SELECT min(m.made_at) FROM alert_messages m JOIN alert_rules r USING (rule_id)
            WHERE m.state = 'waiting' AND r.disabled IS NULL)
$$;

GRANT CREATE ON SCHEMA public TO sparkledger_log;
ALTER FUNCTION calendar_of OWNER TO sparkledger_log;
ALTER FUNCTION alert_figures OWNER TO sparkledger_log;
REVOKE CREATE ON SCHEMA public FROM sparkledger_log;
REVOKE ALL ON FUNCTION calendar_of, alert_figures FROM PUBLIC;
GRANT EXECUTE ON FUNCTION calendar_of TO sparkledger_api;
GRANT EXECUTE ON FUNCTION alert_figures TO sparkledger_api, sparkledger_worker;
