-- Has the session keep a statement, on a condition, and says whether it does. Postgres settles on one plan for all parameters
-- when it has made some plans for theirs, and that one is made here, so that what is set here holds for it. (One that was
-- prepared before may have another plan.)
DO $do$
BEGIN
    IF NOT (/*condition*/) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '/*name*/') THEN
        DEALLOCATE /*name*/;
    END IF;
    PERFORM pg_catalog.set_config('enable_seqscan', 'off', true), pg_catalog.set_config('jit', 'off', true),
            pg_catalog.set_config('plan_cache_mode', 'auto', true);
    EXECUTE $prepare$ PREPARE /*name*/ (/*types*/) AS /*statement*/ $prepare$;
    FOR i IN 1..6 LOOP
        EXECUTE $trial$ EXECUTE /*name*/ (/*trial*/) $trial$;
    END LOOP;
END
$do$;
SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '/*name*/')
