-- Has the session prepare a statement, on a condition. Postgres settles on one plan for all parameters
-- when it has made five for theirs, and that one is made here, so that what is set here holds for it. (One that was prepared
-- before may have another plan by now.)
DO $do$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '/*name*/') THEN
        DEALLOCATE /*name*/;
    END IF;
    IF (/*condition*/) IS NOT TRUE THEN
        RETURN;
    END IF;
    PERFORM pg_catalog.set_config('enable_seqscan', 'off', true), pg_catalog.set_config('jit', 'off', true),
            pg_catalog.set_config('plan_cache_mode', 'auto', true), pg_catalog.set_config('enable_nestloop', 'on', true),
            pg_catalog.set_config('enable_indexscan', 'on', true), pg_catalog.set_config('enable_indexonlyscan', 'on', true);
    EXECUTE $prepare$ PREPARE /*name*/ (/*types*/) AS /*statement*/ $prepare$;
    FOR i IN 1..6 LOOP
        EXECUTE $trial$ EXECUTE /*name*/ (/*trial*/) $trial$;
    END LOOP;
END
$do$;
