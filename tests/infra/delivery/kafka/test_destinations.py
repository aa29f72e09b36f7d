"""Which ledgers go to which topics: names first, then the first pattern that fits."""

from __future__ import annotations

import psycopg

from infra.delivery.kafka.publication_status import OF_DESTINATION, destinations
from tests.conftest import TestDatabase

NAMES = ["main", "acme-1", "acme-22", "acme.x", "acme", "globex", "g1", "gx"]


def test_a_ledger_goes_where_its_name_or_the_first_pattern_sends_it(database: TestDatabase) -> None:
    setting = ["acme-?=one", "acme-22=named", "acme[!-]*=dotted", "acme*=acme", "g[0-9]=digit", "*=rest"]
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        found = {
            destination.prefix: [
                name
                for (name,) in connection.cursor(binary=True).execute(
                    f"SELECT l.name FROM unnest(%b::text[]) AS l (name) WHERE {OF_DESTINATION}",
                    (NAMES, *destination.parameters),
                )
            ]
            for destination in destinations(setting)
        }
    assert found == {
        "one": ["acme-1"],
        "named": ["acme-22"],
        "dotted": ["acme.x"],
        "acme": ["acme"],
        "digit": ["g1"],
        "rest": ["main", "globex", "gx"],
    }


def test_a_ledger_that_fits_nothing_goes_nowhere(database: TestDatabase) -> None:
    (destination,) = destinations(["acme-*=acme"])
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        query = f"SELECT l.name FROM unnest(%b::text[]) AS l (name) WHERE {OF_DESTINATION}"
        found = connection.cursor(binary=True).execute(query, (NAMES, *destination.parameters)).fetchall()
    assert found == [("acme-1",), ("acme-22",)]
