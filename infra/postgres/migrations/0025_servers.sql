-- Which of an installation's servers this is: no row where there is only one. `sparkledger migrate` numbers the servers,
-- and from the number follows which ids this server's ledgers get.
CREATE TABLE this_server (
    name            text NOT NULL,
    number          int NOT NULL CHECK (number >= 0),
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);
GRANT SELECT ON this_server TO sparkledger_api, sparkledger_worker;
