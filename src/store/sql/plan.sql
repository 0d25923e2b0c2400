-- In the transaction that prepares a statement, before that: which process of the server this is, and whether its database is in
-- this life. Postgres settles on one plan for all parameters when it has made five for theirs, and that one is made in the same
-- transaction, so that what is set here holds for it.
SELECT pg_catalog.pg_backend_pid(),
       EXISTS (SELECT FROM pgcache.current c WHERE c.epoch = '/*epoch*/' AND c.incarnation = '/*incarnation*/')
  FROM (SELECT pg_catalog.set_config('enable_seqscan', 'off', true), pg_catalog.set_config('jit', 'off', true),
               pg_catalog.set_config('plan_cache_mode', 'auto', true), pg_catalog.set_config('enable_nestloop', 'on', true),
               pg_catalog.set_config('enable_indexscan', 'on', true), pg_catalog.set_config('enable_indexonlyscan', 'on', true)
        OFFSET 0) settings
