-- pgcache.lookup in one statement, as lookup_kept.sql, but without a search for changes: what was stored before the last change of
-- anything is not valid here, and has to be asked for again. A quarter of what such a statement costs is to make its plan ready to
-- run: so it makes one bound out of the state of the log where that is read, names no column that it does not need, and leaves it
-- to the other statements to say which isolation is the default. `valid` is all_seen.sql, with both of its conditions in that bound,
-- and with the snapshot's xmin as it stands in `meta`. Whether an entry can be revalidated does not matter if it is valid.
SELECT p.origin, e.key, e.valid, e.vary, e.head, CASE WHEN e.valid THEN e.body END AS body, e.meta
  FROM (
    SELECT p.id, clock_timestamp() AS clock,
           xid8send(greatest(p.before_horizon, p.last_folded,
                             (SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1))) AS bound,
           pg_catalog.concat_ws(' ', '/*epoch*/ /*incarnation*/', pg_current_snapshot(),
                                (date_part('epoch', clock_timestamp()) * 1000000::float8)::bigint) AS origin
      FROM pgcache.epoch p
     WHERE p.singleton AND p.relation = p.tableoid AND p.id = '/*epoch*/' AND NOT pg_is_in_recovery()
       AND pgcache.is_planned_well()
    OFFSET 0) p
  LEFT JOIN LATERAL (SELECT e.key, e.vary, e.head, e.body, e.meta, substring(e.meta FROM 37 FOR 8) > p.bound AS valid
                       FROM pgcache.entry e
                      WHERE e.key = ANY ((SELECT $1)::bytea[]) AND e.keep_until > p.clock AND e.epoch = p.id
                     OFFSET 0) e ON true OR $2
