-- Whether what a session has found can still be lost by a failover.
--
-- With synchronous replication, a commit waits for its standby before anybody sees it. But it is seen without that where
-- its wait was cut short: by the end of its session, a cancellation, or a restart of the server. Anyone who finds it
-- then, and answers that it was recorded, would answer what a failover takes back.

-- Have the commit of this statement wait for every commit that the statement has found: it has a place of its own in the
-- write-ahead log, behind theirs, and the standby must have that place. It costs nothing where no standby is synchronous.
CREATE FUNCTION confirm_commits() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF pg_catalog.pg_is_in_recovery() THEN
        RAISE read_only_sql_transaction USING MESSAGE = 'a standby does not know what a failover will keep';
    END IF;
    IF pg_catalog.length(pg_catalog.current_setting('synchronous_standby_names')) OPERATOR(pg_catalog.>) 0 THEN
        -- Some sessions do not wait for their own commits.
        IF pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) ANY (ARRAY['off', 'local']) THEN
            PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
        END IF;
        PERFORM pg_catalog.pg_logical_emit_message(true, 'sparkledger'::text, ''::text);
    END IF;
    RETURN true;
END $$;
REVOKE ALL ON FUNCTION confirm_commits FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confirm_commits TO sparkledger_api, sparkledger_worker;
