-- One row per watched table, or one without a table. (The epoch is as persistent as the entries; where these are partitioned, their
-- table says nothing about that.)
SELECT e.relpersistence = 'p' AS durable,
       (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = 'pgcache.entry'::regclass::oid) AS partitions,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = 'pgcache.follow_fraiseql()'::regprocedure) AS adopted,
       w."table"::text AS watched, w.tenant_column IS NOT NULL AS has_tenant, w.triggers,
       w.unwatched::text[] AS unwatched, w.broken_columns::text[] AS broken
  FROM pg_class e
  LEFT JOIN pgcache.watched_tables w ON true
 WHERE e.oid = 'pgcache.epoch'::regclass::oid
 ORDER BY watched
