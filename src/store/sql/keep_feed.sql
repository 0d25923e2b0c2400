-- Has the session keep a statement, if it is one of this life of the database, and says whether it does.
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '/*name*/')
       AND EXISTS (SELECT FROM pgcache.current c
                    WHERE c.epoch = '/*epoch*/' AND pg_catalog.split_part(c.incarnation, '/', 1) = '/*incarnation*/')
    THEN
        EXECUTE $prepare$ PREPARE /*name*/ (pg_catalog.pg_snapshot, integer) AS /*statement*/ $prepare$;
    END IF;
END
$do$;
SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '/*name*/')
