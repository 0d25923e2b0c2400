-- pgcache.feed, as columns: where nothing has changed that can be seen without a search. Then all of the log is below the
-- past's xmin, and horizon and floor are too. No parameter is compared with a column in an index's terms, so that nothing
-- is gained by a plan for the values, and Postgres settles on one plan for all.
SELECT c.epoch::text, c.incarnation, pg_current_snapshot()::text,
       (current_setting('default_transaction_isolation') = 'read committed')::text,
       CASE WHEN pg_snapshot_xmin($1) > coalesce((SELECT i.xid FROM pgcache.invalidation i ORDER BY i.xid DESC LIMIT 1), '0')
             AND pg_snapshot_xmin($1) >= pg_snapshot_xmax(c.horizon)
             AND pg_snapshot_xmin($1) >= pg_snapshot_xmax(c.log_floor)
            THEN ''
            ELSE (pgcache.feed($1, $2))[5] END
  FROM pgcache.current c
