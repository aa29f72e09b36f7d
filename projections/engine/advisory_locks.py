"""Numbers of all advisory locks that the program takes in PostgreSQL.

A lock is a number, or a number with a second key: a name that PostgreSQL hashes, or a ledger's id. All
programs that share a database share these locks, so no number may have two meanings.
"""

from enum import IntEnum, unique


@unique
class AdvisoryLock(IntEnum):
    """What a lock is held for; the comment says what its second key is."""

    MIGRATION = 7_290_113_450  # no second key
    VIEW_LEADER = 7_290_114  # a view's name, hashed
    VIEW_CREATION = 7_290_115  # a view's name, hashed
    EXPIRY_CLOCK = 7_290_116  # no second key
    KAFKA_PUBLISHER = 7_290_117  # a destination's topic prefix, hashed
    MASTER_KEY_ROTATION = 7_290_118  # no second key
    WEBHOOK_COUNT = 7_290_119  # a ledger's id
    WEBHOOK_SENDER = 7_290_120  # an endpoint's id, hashed
    ERASURE = 7_290_121  # a ledger's id; also in `carry_out_erasure`, in 0009_erasure.sql
    SEALER = 7_290_122  # no second key
    ANCHOR = 7_290_123  # no second key
    WATCHER = 7_290_124  # no second key
    SEALED_CHECK = 7_290_125  # no second key
    WITNESSES = 7_290_126  # no second key
    TIME_STAMPS = 7_290_127  # no second key
    HEADS = 7_290_128  # no second key
    ALERTS = 7_290_129  # no second key
    ALERT_COUNT = 7_290_130  # a ledger's id
    MAPPING_COUNT = 7_290_131  # a ledger's id
    LEDGER_MOVE = 7_290_132  # a ledger's id
    LEDGER_NAME = 7_290_133  # the name of a ledger that is created, hashed
    IMPORT_COUNT = 7_290_134  # a ledger's id
    IMPORTS = 7_290_135  # no second key
