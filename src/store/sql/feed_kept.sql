-- pgcache.feed for a session that is known to be of the database with this epoch: only the changes, and what may end that.
-- Where all of the log is below the past's xmin, and horizon and floor are too, nothing has changed, and there is nothing to
-- search. No parameter is compared with an indexed column, so that nothing is gained by a plan for the values, and Postgres
-- settles on one plan for all. The incarnation (/*incarnation*/) outlasts the session: only a crash ends it.
SELECT pg_current_snapshot()::text, (current_setting('default_transaction_isolation') = 'read committed')::text,
       CASE WHEN pg_snapshot_xmin($1) > coalesce((SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1), '0')
             AND pg_snapshot_xmin($1) >= pg_snapshot_xmax(e.horizon)
             AND pg_snapshot_xmin($1) >= pg_snapshot_xmax(e.log_floor)
            THEN ''
            ELSE (pgcache.feed($1, $2))[5] END,
       '/*epoch*/'::text, '/*incarnation*/'::text
  FROM pgcache.epoch e
 WHERE e.singleton AND e.relation = e.tableoid AND e.id = '/*epoch*/' AND NOT pg_is_in_recovery()
   AND pgcache.is_planned_well()
