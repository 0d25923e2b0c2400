-- The triggers that a watched table and everything below it should have, what is there, and the statement that
-- makes the one into the other (null: nothing to do).
CREATE VIEW pgcache.watch_trigger AS
    SELECT x.*,
           CASE WHEN x.found_state = x.wanted_state OR x.found_state IS NULL AND x.wanted_state IS NULL THEN NULL
                WHEN x.wanted_state IS NULL THEN format('DROP TRIGGER %I ON %s', x.name, x.relation)
                ELSE concat_ws('; ',
                         CASE WHEN x.found_state IS NULL
                              THEN format('CREATE TRIGGER %I AFTER ' || x.event || ' EXECUTE FUNCTION pgcache.watch_%s()',
                                          x.name, x.relation, x.id) END,
                         CASE WHEN x.found_state IS NOT NULL OR x.wanted_state <> 'O'
                              THEN format('ALTER TABLE %s ENABLE %s TRIGGER %I', x.relation,
                                          CASE x.wanted_state WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' END, x.name) END)
           END AS command
      FROM (SELECT w.id, h.relation, e.event, n.name, e.wanted_state, t.tgenabled AS found_state
              FROM pgcache.watched w
             CROSS JOIN LATERAL pgcache.hierarchy(w.relation) AS h (relation)
              JOIN pg_class c ON c.oid = h.relation AND c.relkind IN ('r', 'p')
             CROSS JOIN LATERAL (VALUES
                    ('insert', 'INSERT ON %2$s REFERENCING NEW TABLE AS new_rows', 'O'),
                    ('update', 'UPDATE ON %2$s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows', 'O'),
                    ('delete', 'DELETE ON %2$s REFERENCING OLD TABLE AS old_rows', 'O'),
                    ('truncate', 'TRUNCATE ON %2$s', CASE WHEN w.always THEN 'A' ELSE 'O' END),
                    ('replicated', 'INSERT OR UPDATE OR DELETE ON %2$s FOR EACH ROW',
                     CASE WHEN w.always AND c.relkind = 'r' THEN 'R' END)) AS e (name, event, wanted_state)
             CROSS JOIN LATERAL (SELECT format('pgcache_%s_%s_%s', w.id, e.name,
                                               CASE WHEN length(s.relnamespace::regnamespace::text) <= 35
                                                    THEN s.relnamespace::regnamespace::text
                                                    ELSE left(s.relnamespace::regnamespace::text, 26) || '_'
                                                         || to_hex(hashtext(s.relnamespace::regnamespace::text)) END)::name AS name
                                   FROM pg_class s WHERE s.oid = 'pgcache.watched'::regclass) n
              LEFT JOIN pg_trigger t ON t.tgrelid = h.relation AND t.tgname = n.name AND NOT t.tgisinternal) x;

-- What watch() wants to have, checked and written down, and the trigger function made. Returns the statements
-- that are left for the owner of the table; none if everything is as it should be.
CREATE FUNCTION pgcache.record_watch(w pgcache.watched, caller name) RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    class    pg_class;
    stored   pgcache.watched;
    changed  boolean;
    commands text[];
    attr     name;
    bad      text;
BEGIN
    SELECT * INTO class FROM pg_class c WHERE c.oid = w.relation;
    IF class.oid IS NULL THEN
        RAISE EXCEPTION 'pgcache.watch: there is no such table' USING ERRCODE = 'undefined_table';
    END IF;
    bad := CASE
        WHEN class.relkind = 'v' THEN 'is a view|Watch the tables that it reads, with the same domain.'
        WHEN class.relkind = 'm' THEN 'is a materialized view|Refresh it with pgcache.refresh(), which invalidates its domain.'
        WHEN class.relkind = 'f' THEN 'is a foreign table: what others do to it is not seen here|Call pgcache.invalidate() in the transactions that change it.'
        WHEN class.relkind NOT IN ('r', 'p') THEN 'is not a table|Watch a table.'
        WHEN class.relpersistence = 't' THEN 'is a temporary table|Only its own session sees it: there is nothing to invalidate.'
        WHEN class.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
             OR class.relnamespace = (SELECT c.relnamespace FROM pg_class c WHERE c.oid = 'pgcache.watched'::regclass)
        THEN 'is a table of the system or of the cache|Watch tables of your own.'
        WHEN EXISTS (SELECT FROM pgcache.hierarchy(w.relation) h JOIN pg_class c ON c.oid = h WHERE c.relkind = 'f')
        THEN 'has foreign tables among its partitions or children, and Postgres cannot capture what is written to them'
             '|Watch the local partitions one by one, and call pgcache.invalidate() for the others.'
    END;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'pgcache.watch: % %', w.relation, split_part(bad, '|', 1)
            USING ERRCODE = 'wrong_object_type', HINT = split_part(bad, '|', 2);
    END IF;
    IF w.domain IS NULL THEN
        w.domain := regexp_replace(lower(class.relname), '^t[vb]_', '');
        IF NOT pgcache.is_domain_name(w.domain) THEN
            RAISE EXCEPTION 'pgcache.watch: no domain can be named after %', w.relation
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Name one: watch(…, domain => ''…'').';
        END IF;
    END IF;
    PERFORM pgcache.require_domain_name('watch', w.domain);
    IF w.max_entities IS NULL OR w.max_entities < 1 THEN
        RAISE EXCEPTION 'pgcache.watch: max_entities must be at least 1, not %', coalesce(w.max_entities::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF w.columns IS NOT NULL AND (cardinality(w.columns) = 0 OR array_position(w.columns, NULL) IS NOT NULL) THEN
        RAISE EXCEPTION 'pgcache.watch: columns must name at least one column'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it out (NULL) to watch all.';
    END IF;
    FOREACH attr IN ARRAY array_remove(w.columns || w.tenant_column || w.entity_column, NULL) LOOP
        PERFORM FROM pg_attribute a
          WHERE a.attrelid = w.relation AND a.attname = attr AND a.attnum > 0 AND NOT a.attisdropped;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'pgcache.watch: % has no column %', w.relation, quote_ident(attr)
                USING ERRCODE = 'undefined_column';
        END IF;
    END LOOP;
    SELECT quote_ident(a.attname) INTO bad FROM pg_attribute a
     WHERE a.attrelid = w.relation AND a.attgenerated = 'v' AND a.attname = ANY (w.columns || w.tenant_column || w.entity_column);
    IF FOUND THEN
        RAISE EXCEPTION 'pgcache.watch: column % of % is virtual: a trigger is not told its values', bad, w.relation
            USING ERRCODE = 'feature_not_supported', HINT = 'Name the columns that it is generated from, or make it STORED.';
    END IF;
    FOREACH attr IN ARRAY array_remove(ARRAY[w.tenant_column, w.entity_column], NULL) LOOP
        IF pgcache.plain_type(w.relation, attr) IS NULL THEN
            RAISE EXCEPTION 'pgcache.watch: column % of % has the type %, which cannot name a tenant or an entity',
                            quote_ident(attr), w.relation,
                            (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
                              WHERE a.attrelid = w.relation AND a.attname = attr)
                USING ERRCODE = 'datatype_mismatch',
                      HINT = 'Use a column whose text is the same in every session and is made by no code but '
                             'Postgres'' own: an integer, numeric, uuid, boolean or text type, or a domain over one; '
                             'for instance a generated column.';
        END IF;
    END LOOP;
    SELECT quote_ident(a.attname) || ' (' || t.typnamespace::regnamespace || ')' INTO bad
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = w.relation
       AND (a.attname IN (w.tenant_column, w.entity_column) OR a.attname = ANY (pgcache.key_columns(w.relation)))
       AND NOT (has_schema_privilege(t.typnamespace, 'USAGE') AND has_type_privilege(t.oid, 'USAGE'));
    IF FOUND THEN
        RAISE EXCEPTION 'pgcache.watch: role % may not use the type of column %', current_user, bad
            USING ERRCODE = 'insufficient_privilege', HINT = 'Grant it USAGE on the schema and on the type.';
    END IF;
    IF w.columns IS NOT NULL AND pgcache.key_columns(w.relation) IS NULL THEN
        RAISE EXCEPTION 'pgcache.watch: % has no primary key (of integers, uuids or text) to tell which row had which columns', w.relation
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Add a primary key, or leave out `columns`.';
    END IF;

    LOCK TABLE pgcache.watched IN SHARE ROW EXCLUSIVE MODE;
    PERFORM pgcache.forget_dropped();
    SELECT * INTO stored FROM pgcache.watched x WHERE x.relation = w.relation;
    w.id := coalesce(stored.id, nextval(pg_get_serial_sequence('pgcache.watched', 'id')));
    INSERT INTO pgcache.watched OVERRIDING SYSTEM VALUE VALUES (w.*)
        ON CONFLICT (relation) DO UPDATE SET (domain, tenant_column, entity_column, columns, max_entities, always)
            = (EXCLUDED.domain, EXCLUDED.tenant_column, EXCLUDED.entity_column, EXCLUDED.columns, EXCLUDED.max_entities,
               EXCLUDED.always);
    changed := pgcache.make_trigger_function(w);
    IF NOT has_function_privilege(caller, format('pgcache.watch_%s()', w.id), 'EXECUTE') THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION pgcache.watch_%s() TO %I', w.id, caller);
    END IF;
    SELECT array_agg(t.command) INTO commands FROM pgcache.watch_trigger t WHERE t.id = w.id AND t.command IS NOT NULL;
    IF changed OR commands IS NOT NULL THEN
        -- Who has written to the table and not committed yet did so under the old rules: he is waited for. What
        -- was stored until now may depend on changes that nobody saw.
        -- (CREATE TRIGGER takes that lock by itself, and a role needs less for it. The old domain, too, loses its guard.)
        RETURN CASE WHEN stored.id IS NOT NULL THEN ARRAY[format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', w.relation)] END
               || commands || format('SELECT pgcache.invalidate(%L)', w.domain)
               || CASE WHEN stored.domain <> w.domain THEN ARRAY[format('SELECT pgcache.invalidate(%L)', stored.domain)] END;
    END IF;
    RETURN '{}';
END
$$;

-- Tables that are gone took their triggers with them.
CREATE FUNCTION pgcache.forget_dropped() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone integer;
BEGIN
    FOR gone IN DELETE FROM pgcache.watched w
                 WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = w.relation) RETURNING w.id LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS pgcache.watch_%s()', gone);
    END LOOP;
END
$$;

-- Watches a table: from the commit of this transaction on, a transaction that changes its rows invalidates what
-- depends on them, by whatever program.
--
--   domain         default: the name of the table, without `tv_` or `tb_`
--   tenant_column  whose rows: the old and the new tenant of every changed row are concerned; NULL means every tenant
--   entity_column  which entity: answers for other entities stay
--   columns        a change of other columns concerns nobody (tenant and entity always count)
--   max_entities   a statement that changes more concerns every entity of its tenants (default 1000)
--   always         also changes that logical replication applies here; row by row
--
-- May be called again, to change settings, and after partitions were added, columns renamed, or a type
-- changed. When there is something to do it waits for the transactions that write to the table, and they for
-- it, as CREATE TRIGGER does; else it takes no lock.
CREATE FUNCTION pgcache.watch("table" regclass, domain text DEFAULT NULL, tenant_column name DEFAULT NULL,
                              entity_column name DEFAULT NULL, columns name[] DEFAULT NULL,
                              max_entities integer DEFAULT 1000, always boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    command text;
BEGIN
    FOREACH command IN ARRAY pgcache.record_watch(
        ROW(0, "table", domain, tenant_column, entity_column, columns, max_entities, coalesce(always, false))::pgcache.watched,
        current_user) LOOP
        EXECUTE command;
    END LOOP;
END
$$;

-- Ends watch(), and invalidates what depends on the domain: from here on nobody sees to it.
CREATE FUNCTION pgcache.unwatch("table" regclass) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    command text;
BEGIN
    FOREACH command IN ARRAY pgcache.record_unwatch("table") LOOP
        EXECUTE command;
    END LOOP;
    PERFORM pgcache.drop_trigger_function("table");
END
$$;

CREATE FUNCTION pgcache.record_unwatch(relation regclass) RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w        pgcache.watched;
    commands text[];
BEGIN
    SELECT * INTO w FROM pgcache.watched x WHERE x.relation = record_unwatch.relation;
    IF w.id IS NULL THEN
        RAISE EXCEPTION 'pgcache.unwatch: % is not watched', relation
            USING ERRCODE = 'undefined_object', HINT = 'The view pgcache.watched_tables shows what is.';
    END IF;
    -- also those on tables that were detached since
    SELECT array_agg(format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass)) INTO commands
      FROM pg_trigger t
     WHERE t.tgfoid = to_regprocedure(format('pgcache.watch_%s()', w.id)) AND NOT t.tgisinternal;
    PERFORM pgcache.invalidate(w.domain);
    RETURN coalesce(commands, '{}');
END
$$;

-- Fails while a trigger uses the function.
CREATE FUNCTION pgcache.drop_trigger_function(relation regclass) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    number integer;
BEGIN
    DELETE FROM pgcache.watched w WHERE w.relation = drop_trigger_function.relation RETURNING w.id INTO number;
    EXECUTE format('DROP FUNCTION IF EXISTS pgcache.watch_%s()', number);
END
$$;

