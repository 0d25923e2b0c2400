-- With `partitions(n)` the table is split by the hash of the key; `/*count*/` stands for n. What a partitioned table cannot have
-- goes to its partitions: the storage parameters, and being UNLOGGED (PostgreSQL 18 refuses it to the parent, which holds
-- nothing). Whatever asks for entries by their keys does so for one key at a time, see partitioned.sql.
CREATE TABLE pgcache.entry_split (LIKE pgcache.entry INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE) PARTITION BY HASH (key);
DO $$
DECLARE
    parameters text := (SELECT string_agg(o.parameter, ', ')
                          FROM pg_class c
                          LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
                         CROSS JOIN LATERAL (SELECT unnest(c.reloptions)
                                              UNION ALL
                                             SELECT 'toast.' || unnest(t.reloptions)) AS o (parameter)
                         WHERE c.oid = 'pgcache.entry'::regclass);
BEGIN
    DROP TABLE pgcache.entry;
    ALTER TABLE pgcache.entry_split RENAME TO entry;
    ALTER TABLE pgcache.entry ADD PRIMARY KEY (key);
    FOR place IN 0 .. /*count*/ - 1 LOOP
        EXECUTE format('CREATE /*persistence*/ TABLE pgcache.entry_%1$s PARTITION OF pgcache.entry'
                       ' FOR VALUES WITH (MODULUS /*count*/, REMAINDER %1$s) WITH (%2$s)', place, parameters);
    END LOOP;
END
$$;
