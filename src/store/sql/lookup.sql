-- $1: keys. One row per stored, fresh and valid entry; one row with a null key if there is none; no row if
-- the cache must not be used (no good epoch, or not a primary). Indexes: entry_pkey, changed_pkey,
-- invalidation_xid.
SELECT c.epoch::text                        AS epoch,
       c.incarnation                        AS incarnation,
       pg_current_snapshot()::text          AS snapshot,
       extract(epoch FROM clock_timestamp())::float8 AS at,
       current_setting('transaction_isolation') = 'read committed' AS read_committed,
       e.key                                AS key,
       e.checksum                           AS checksum,
       e.head                               AS head,
       e.body                               AS body,
       e.probes                             AS probes,
       e.snapshot::text                     AS filled_at,
       extract(epoch FROM clock_timestamp() - e.born_at)::float8    AS age,
       extract(epoch FROM e.expires_at - clock_timestamp())::float8 AS ttl
  FROM pgcache.current c
  LEFT JOIN pgcache.entry_state e
    ON e.key = ANY ($1)
   AND e.expires_at > clock_timestamp()
   AND e.usable
   AND e.unchanged
