-- One row per watched table, or one without a table.
SELECT e.relpersistence = 'p' AS durable,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = 'pgcache.follow_fraiseql()'::regprocedure) AS adopted,
       w."table"::text AS watched, w.tenant_column IS NOT NULL AS has_tenant, w.triggers,
       w.unwatched::text[] AS unwatched, w.broken_columns::text[] AS broken
  FROM pg_class e
  LEFT JOIN pgcache.watched_tables w ON true
 WHERE e.oid = 'pgcache.entry'::regclass
 ORDER BY 3
