-- pgcache.lookup in one statement, for a session that is known to be of the database with this epoch. Without the function, its
-- settings and its two searches it costs half as much; but what the settings say about the plan has to be seen to when it is
-- prepared, and a plan that was made later, without them, brings no row. `(SELECT $1)`: no parameter is compared with an indexed
-- column, so that nothing is gained by a plan for the values, and Postgres settles on one plan for all.
WITH here AS MATERIALIZED (
    SELECT p.id, p.horizon, p.folded, newest.xid AS newest, greatest(p.last_folded, newest.xid) AS last_change,
           pg_current_snapshot()::text AS snapshot, clock_timestamp() AS now,
           current_setting('default_transaction_isolation') = 'read committed' AS read_committed
      FROM pgcache.epoch p
     CROSS JOIN (SELECT coalesce((SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1), '0') AS xid OFFSET 0) newest
     WHERE p.singleton AND p.relation = p.tableoid AND p.id = '/*epoch*/' AND NOT pg_is_in_recovery()
       AND NOT pgcache.planned_with_seqscan()
)
SELECT '/*epoch*/'::text, '/*incarnation*/'::text, p.snapshot, date_part('epoch', p.now), p.read_committed,
       e.key, e.valid, e.revalidatable, e.vary, e.checksum, e.head, e.body, e.probes, e.snapshot::text,
       date_part('epoch', p.now - e.born_at), date_part('epoch', e.expires_at - p.now), e.cost, e.unpacked
  FROM here p
  LEFT JOIN LATERAL (SELECT e.*,
                            -- whoever sees all up to the last change of anything, and up to the horizon, needs no search
                            pg_snapshot_xmin(e.snapshot) > p.last_change
                            AND pg_snapshot_xmin(e.snapshot) >= pg_snapshot_xmax(p.horizon)
                            OR /*usable*/ AND /*unchanged*/ AS valid
                       FROM pgcache.entry e
                      WHERE e.key = ANY ((SELECT $1)::bytea[]) AND e.keep_until > p.now AND e.epoch = p.id
                     OFFSET 0) e ON e.valid OR e.revalidatable OR $2
