-- In the transaction that prepares a statement, before that: which process of the server this is, and whether its database is in
-- this life and names are looked up in pg_catalog first (after those of temporary tables). Postgres settles on one plan for all
-- parameters when it has made five for theirs, and that one is made in the same transaction, so that what is set here holds for
-- it.
SELECT pg_catalog.pg_backend_pid(),
       (pg_catalog.array_remove(pg_catalog.current_schemas(true), pg_catalog.pg_my_temp_schema()::pg_catalog.regnamespace::pg_catalog.name))[1]
       OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.name
       AND EXISTS (SELECT FROM pgcache.current c
                    WHERE c.epoch OPERATOR(pg_catalog.=) '/*epoch*/' AND c.incarnation OPERATOR(pg_catalog.=) '/*incarnation*/')
  FROM (SELECT pg_catalog.set_config('tower.pgcache_plan', 'made here', true),
               -- what holds up the next statements takes a connection from everybody else
               pg_catalog.set_config('lock_timeout', '100ms', true), pg_catalog.set_config('statement_timeout', '1s', true),
               pg_catalog.set_config('enable_seqscan', 'off', true), pg_catalog.set_config('jit', 'off', true),
               pg_catalog.set_config('plan_cache_mode', 'auto', true), pg_catalog.set_config('enable_nestloop', 'on', true),
               pg_catalog.set_config('enable_indexscan', 'on', true), pg_catalog.set_config('enable_indexonlyscan', 'on', true),
               -- for a few keys it takes a tenth longer than to read the index and the table in turn
               pg_catalog.set_config('enable_bitmapscan', 'off', true)
        OFFSET 0) settings
