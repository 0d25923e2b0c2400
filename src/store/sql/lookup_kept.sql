-- pgcache.lookup in one statement, for a session that is known to be of the database with this epoch. Without the function, its
-- settings and its two searches it costs half as much; but what the settings say about the plan has to be seen to when it is
-- prepared, and a plan that was made later, without them, brings no row. `(SELECT $1)`: no parameter is compared with an indexed
-- column, so that nothing is gained by a plan for the values, and Postgres settles on one plan for all.
SELECT p.origin, e.key, e.valid, e.vary, e.head, e.body, e.meta, e.revalidatable, e.snapshot, e.probes
  FROM (
    SELECT p.id, p.horizon, p.folded, now.newest, greatest(p.last_folded, now.newest) AS last_change, now.clock,
           pg_catalog.concat_ws(' ', '/*epoch*/', '/*incarnation*/', pg_current_snapshot(),
                                (date_part('epoch', now.clock) * 1000000::float8)::bigint,
                                current_setting('default_transaction_isolation') = 'read committed') AS origin
      FROM pgcache.epoch p
     CROSS JOIN (SELECT coalesce((SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1), '0') AS newest,
                        clock_timestamp() AS clock
                 OFFSET 0) now
     WHERE p.singleton AND p.relation = p.tableoid AND p.id = '/*epoch*/' AND NOT pg_is_in_recovery()
       AND pgcache.is_planned_well()
    OFFSET 0) p
  LEFT JOIN LATERAL (SELECT e.key, e.vary, e.head, e.body, e.meta, e.revalidatable, e.snapshot, e.probes,
                            /*all_seen*/ OR /*usable*/ AND /*unchanged*/ AS valid
                       FROM pgcache.entry e
                      WHERE e.key = ANY ((SELECT $1)::bytea[]) AND e.keep_until > p.clock AND e.epoch = p.id
                     OFFSET 0) e ON e.valid OR e.revalidatable OR $2
