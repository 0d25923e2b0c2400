-- Tables whose changes invalidate: what is watched, and the trigger functions that are made for it.
-- Configuration is LOGGED, whatever the entries are.
--
-- Who may do what: `watch`, `unwatch` and `refresh` run as their caller, who needs the TRIGGER privilege on the
-- table (to own it, for unwatch, refresh and `always`), and write down what they do through functions
-- that run as the owner of this schema. None of this is open to PUBLIC. Whoever writes to a watched table needs
-- no right on anything here: the trigger functions run as the owner of the schema too.

CREATE TABLE pgcache.watched (
    id            integer  PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    relation      regclass NOT NULL UNIQUE,
    domain        text     NOT NULL,
    tenant_column name,
    entity_column name,
    columns       name[],
    max_entities  integer  NOT NULL,
    always        boolean  NOT NULL
);

CREATE TABLE pgcache.cascade_rule (
    source     text NOT NULL,
    target     text NOT NULL,
    entity_via name,
    PRIMARY KEY (source, target)
);

-- `value`, if it is of the very type of the array: of another type, though it could be converted, there is
-- no such function. A watched column's type may change after watch() looked at it, and a conversion is
-- code of whoever owns the type, here with the rights of this schema's owner. Inlined: costs nothing.
CREATE FUNCTION pgcache.exact(value anyelement, type anyarray) RETURNS anyelement
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS 'SELECT value';

-- The type of a column as it is written in SQL, if its text is the same in every session and nobody else's
-- code makes it: a built-in type, or a (CREATE DOMAIN) domain over one. Else null.
CREATE FUNCTION pgcache.plain_type(relation regclass, attribute name) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE base AS (
        SELECT a.atttypid AS declared, a.atttypid AS type FROM pg_attribute a
         WHERE a.attrelid = relation AND a.attname = attribute AND a.attnum > 0 AND NOT a.attisdropped
           AND a.attgenerated <> 'v'         -- (virtual: unknown to triggers)
         UNION ALL
        SELECT b.declared, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.type AND t.typtype = 'd'
    )
    SELECT format_type(b.declared, NULL) FROM base b
     WHERE b.type IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype, 'oid'::regtype,
                      'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'name'::regtype, '"char"'::regtype,
                      'uuid'::regtype, 'bool'::regtype)
$$;

-- Raises an error that a trigger function catches, unless a type is one of the above by nature, whatever its name.
CREATE FUNCTION pgcache.require_plain(type regtype) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (WITH RECURSIVE base AS (
                       SELECT t.oid, t.typbasetype, t.typtype, t.typnamespace FROM pg_type t WHERE t.oid = type
                        UNION ALL
                       SELECT t.oid, t.typbasetype, t.typtype, t.typnamespace FROM base b JOIN pg_type t ON t.oid = b.typbasetype
                        WHERE b.typtype = 'd')
                   SELECT FROM base b WHERE b.typtype = 'b' AND b.typnamespace = 'pg_catalog'::regnamespace) THEN
        RAISE EXCEPTION 'type % is not a domain over a plain type any more', type USING ERRCODE = 'datatype_mismatch';
    END IF;
END
$$;

-- The columns of the primary key, in its order; null if there is none that the trigger function can compare.
CREATE FUNCTION pgcache.key_columns(relation regclass) RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(a.attname ORDER BY k.place)
      FROM pg_index i
     CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts
    HAVING bool_and(pgcache.plain_type(relation, a.attname) IS NOT NULL)
$$;

-- A table and everything below it: partitions and tables that inherit from it.
CREATE FUNCTION pgcache.hierarchy(relation regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE below AS (
        SELECT relation AS oid
         UNION
        SELECT i.inhrelid::regclass FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
    )
    SELECT b.oid FROM below b
$$;

-- Whether a change of `source` reaches `target` otherwise than directly.
CREATE FUNCTION pgcache.has_other_way(source text, target text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE way AS (
        SELECT r.target AS domain FROM pgcache.cascade_rule r
         WHERE r.source = has_other_way.source AND r.target <> has_other_way.target
         UNION
        SELECT r.target FROM way w JOIN pgcache.cascade_rule r ON r.source = w.domain
    )
    SELECT EXISTS (SELECT FROM way w WHERE w.domain = has_other_way.target)
$$;

-- What a trigger function collects of each row: the tenant, the entity, and the columns that cascades go by. An
-- attribute that is null stands for "any".
CREATE FUNCTION pgcache.collected(w pgcache.watched)
RETURNS TABLE (place bigint, name text, list text, attribute name, type text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.place, c.name, c.list, c.attribute, pgcache.plain_type(w.relation, c.attribute)
      FROM (SELECT 1::bigint AS place, 'tenant' AS name, 'tenants' AS list, w.tenant_column AS attribute
             UNION ALL
            SELECT 2, 'entity', 'entities', w.entity_column
             UNION ALL
            SELECT 2 + v.place, 'via_' || v.place, 'vias_' || v.place, v.attribute
              FROM (SELECT row_number() OVER (ORDER BY r.entity_via) AS place, r.entity_via AS attribute
                      FROM pgcache.cascade_rule r
                     WHERE r.source = w.domain AND pgcache.plain_type(w.relation, r.entity_via) IS NOT NULL
                     GROUP BY r.entity_via) v) c
$$;

-- The text of an attribute of a row variable. (In the collation "C": in another one, two texts may count as equal.)
CREATE FUNCTION pgcache.text_of(variable text, attribute name, type text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN attribute IS NULL THEN 'NULL::text'
            ELSE format('pgcache.exact(%s.%I, NULL::%s[])::text COLLATE "C"', variable, attribute, type) END;

-- What is collected, as a list of expressions over a row variable.
CREATE FUNCTION pgcache.collected_of(w pgcache.watched, variable text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(pgcache.text_of(variable, c.attribute, c.type) || ' AS ' || c.name, ', ' ORDER BY c.place)
      FROM pgcache.collected(w) c
$$;

-- The condition that something collected differs between two row variables.
CREATE FUNCTION pgcache.collected_differs(w pgcache.watched, before text, after text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- of these types two values are equal when their texts are, and the texts need not be made
    SELECT coalesce(string_agg(CASE WHEN c.type IN ('smallint', 'integer', 'bigint', 'uuid')
                                    THEN format('pgcache.exact(%1$s.%3$I, NULL::%4$s[]) IS DISTINCT FROM pgcache.exact(%2$s.%3$I, NULL::%4$s[])',
                                                before, after, c.attribute, c.type)
                                    ELSE format('%s IS DISTINCT FROM %s', pgcache.text_of(before, c.attribute, c.type),
                                                pgcache.text_of(after, c.attribute, c.type)) END, ' OR '), 'false')
      FROM pgcache.collected(w) c WHERE c.attribute IS NOT NULL
$$;

-- The condition that two versions of a row differ in what matters: by their binary image, which is nobody's code.
CREATE FUNCTION pgcache.difference(w pgcache.watched, before text, after text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN w.columns IS NULL THEN format('(%s.*) *<> (%s.*)', before, after)
                -- (without the casts the operator would be applied column by column)
                ELSE (SELECT format('ROW(%s)::record *<> ROW(%s)::record', string_agg(format('%s.%I', before, c.attribute), ', '),
                                    string_agg(format('%s.%I', after, c.attribute), ', '))
                        FROM (SELECT unnest(w.columns) AS attribute
                               UNION
                              SELECT c.attribute FROM pgcache.collected(w) c WHERE c.attribute IS NOT NULL) c) END
$$;

-- Statements that look at the types of the columns that have a (CREATE DOMAIN) domain for a type, before anything is
-- made of their values: another type may have got its name, and comparing or converting that may be code of its owner.
-- (By the column itself, not by the catalogs, of which an old snapshot may see an old state.)
CREATE FUNCTION pgcache.type_checks(w pgcache.watched) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('IF TG_LEVEL = ''ROW'' AND TG_OP = ''DELETE'' THEN PERFORM %s; '
                  'ELSIF TG_LEVEL = ''ROW'' THEN PERFORM %s; '
                  'ELSIF TG_OP = ''DELETE'' THEN PERFORM %s FROM old_rows old_row LIMIT 1; '
                  'ELSIF TG_OP = ''INSERT'' THEN PERFORM %s FROM new_rows new_row LIMIT 1; '
                  'ELSIF TG_OP = ''UPDATE'' THEN PERFORM %s FROM old_rows old_row LIMIT 1; PERFORM %s FROM new_rows new_row LIMIT 1; '
                  'END IF;',
                  string_agg(format(c.call, 'OLD', c.attribute), ', '), string_agg(format(c.call, 'NEW', c.attribute), ', '),
                  string_agg(format(c.call, 'old_row', c.attribute), ', '), string_agg(format(c.call, 'new_row', c.attribute), ', '),
                  string_agg(format(c.call, 'old_row', c.attribute), ', '), string_agg(format(c.call, 'new_row', c.attribute), ', '))
      FROM (SELECT 'pgcache.require_plain(pg_typeof(%s.%I))' AS call, a.attname AS attribute
              FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid AND t.typtype = 'd'
             WHERE a.attrelid = w.relation AND a.attnum > 0 AND NOT a.attisdropped
               AND (a.attname = ANY (pgcache.key_columns(w.relation))
                    OR a.attname IN (SELECT c.attribute FROM pgcache.collected(w) c))) c
    HAVING count(*) > 0
$$;

-- The query for what an UPDATE changed, in its transition tables. Old and new versions are paired by the primary
-- key, without one the two sets of rows are compared. (`columns` without a key is refused by watch().)
-- `in_place`: new versions only, and whether the old one would have said something else; null without a key. Most
-- updates move nothing, and for many rows this costs much less.
CREATE FUNCTION pgcache.changes_of_update(w pgcache.watched, in_place boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key     name[] := pgcache.key_columns(w.relation);
    before  text := pgcache.collected_of(w, 'old_row');
    after   text := pgcache.collected_of(w, 'new_row');
    moved   text := pgcache.collected_differs(w, 'old_row', 'new_row');
    differs text := pgcache.difference(w, 'old_row', 'new_row');
    pairing text;
    -- not the text, if possible: that of a float depends on the settings of the session
    image   text := CASE WHEN EXISTS (SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                                       WHERE a.attrelid = w.relation AND a.attnum > 0 AND NOT a.attisdropped AND t.typsend = 0)
                         THEN '(%s.*)::text' ELSE 'record_send(%s.*)' END;
BEGIN
    IF NOT EXISTS (SELECT FROM pgcache.collected(w) c WHERE c.attribute IS NOT NULL) THEN
        differs := differs || ' LIMIT 1';
    END IF;
    IF key IS NULL THEN
        IF in_place THEN
            RETURN NULL;
        END IF;
        RETURN format('(SELECT %1$s, %3$s AS image FROM old_rows old_row'
                      ' EXCEPT ALL SELECT %2$s, %4$s FROM new_rows new_row)'
                      ' UNION ALL '
                      '(SELECT %2$s, %4$s FROM new_rows new_row'
                      ' EXCEPT ALL SELECT %1$s, %3$s FROM old_rows old_row)', before, after,
                      format(image, 'old_row'), format(image, 'new_row'));
    END IF;
    SELECT string_agg(format('pgcache.exact(old_row.%1$I, NULL::%2$s[]) = pgcache.exact(new_row.%1$I, NULL::%2$s[])',
                             k.attribute, pgcache.plain_type(w.relation, k.attribute)), ' AND ')
      INTO pairing FROM unnest(key) AS k (attribute);
    IF in_place THEN
        RETURN format('SELECT %2$s, old_row.%4$I IS NULL OR new_row.%4$I IS NULL OR %3$s AS moved '
                      'FROM old_rows old_row FULL JOIN new_rows new_row ON %1$s '
                      'WHERE old_row.%4$I IS NULL OR new_row.%4$I IS NULL OR %5$s', pairing, after, moved, key[1], differs);
    END IF;
    RETURN format('SELECT v.* FROM old_rows old_row FULL JOIN new_rows new_row ON %1$s CROSS JOIN LATERAL '
                  '(SELECT %3$s WHERE new_row.%5$I IS NOT NULL UNION ALL'
                  ' SELECT %2$s WHERE old_row.%5$I IS NOT NULL AND (new_row.%5$I IS NULL OR %4$s)) v '
                  'WHERE old_row.%5$I IS NULL OR new_row.%5$I IS NULL OR %6$s',
                  pairing, before, after, moved, key[1], differs);
END
$$;

-- The query that makes scopes of what was collected: the domain itself, and its cascades.
CREATE FUNCTION pgcache.scopes_of_changes(w pgcache.watched) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- what was collected without cascades hardly ever holds two that are equal
    SELECT string_agg(
               format('SELECT %s %L::bigint AS hash, %L::text AS name, s.tenant, ',
                      CASE WHEN EXISTS (SELECT FROM pgcache.cascade_closure c WHERE c.source = w.domain) THEN 'DISTINCT' END,
                      pgcache.name_hash('d', t.domain), t.domain)
               || CASE WHEN t.list IS NULL THEN 'NULL::text AS entity FROM unnest(tenants) AS s (tenant)'
                       ELSE format('s.entity FROM unnest(tenants, %s) AS s (tenant, entity)', t.list) END, ' UNION ALL ')
      FROM (-- a domain that is among its own cascades is concerned as a whole
            SELECT w.domain, CASE WHEN w.entity_column IS NOT NULL AND NOT EXISTS (
                                           SELECT FROM pgcache.cascade_closure c
                                            WHERE c.source = w.domain AND c.target = w.domain)
                                  THEN 'entities' END AS list
             UNION ALL
            SELECT c.target, CASE WHEN NOT pgcache.has_other_way(w.domain, c.target)
                                  THEN (SELECT v.list FROM pgcache.cascade_rule r
                                          JOIN pgcache.collected(w) v ON v.attribute = r.entity_via AND v.place > 2
                                         WHERE r.source = w.domain AND r.target = c.target) END
              FROM pgcache.cascade_closure c WHERE c.source = w.domain AND c.target <> w.domain) t
$$;

-- The keys of a log row (as invalidation_keys), spelled out for the hashes of its parts: a function that takes an
-- argument twice is not inlined, and would be planned anew each time.
CREATE FUNCTION pgcache.keys_of(name_hash text, tenant_hash text, entity_hash text) RETURNS text
LANGUAGE sql STABLE
RETURN format('ARRAY[%1$s # %2$s # %3$s, %1$s # %2$s # %5$s, %1$s # %4$s # %3$s, %1$s # %4$s # %5$s]', name_hash, tenant_hash,
              entity_hash, format('(%s)', pgcache.hash64('t+')), format('(%s)', pgcache.hash64('e+')));

-- The part of a trigger function for a statement that changed a single row: without arrays, joins and aggregates.
-- It returns if it was one, sets `number` to 2 if there were more rows.
CREATE FUNCTION pgcache.single_row_source(w pgcache.watched) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tenant_hash text := CASE WHEN w.tenant_column IS NULL THEN format('(%s::bigint)', pgcache.tenant_hash(NULL)) ELSE 'tenant_hash' END;
    entity_hash text := CASE WHEN w.entity_column IS NULL THEN format('(%s::bigint)', pgcache.entity_hash('d', NULL)) ELSE 'entity_hash' END;
BEGIN
    RETURN format($body$
    DECLARE
        tenant      text;
        entity      text;
        old_tenant  text;
        old_entity  text;
        tenant_hash bigint;
        entity_hash bigint;
        differs     boolean;
        moved       boolean := false;
    BEGIN
        BEGIN
            %9$s
            IF TG_OP = 'INSERT' THEN
                SELECT %1$s INTO STRICT tenant, entity FROM new_rows new_row;
            ELSIF TG_OP = 'DELETE' THEN
                SELECT %2$s INTO STRICT tenant, entity FROM old_rows old_row;
            ELSE
                SELECT %1$s, %2$s, %3$s, %4$s INTO STRICT tenant, entity, old_tenant, old_entity, moved, differs
                  FROM old_rows old_row CROSS JOIN new_rows new_row LIMIT 2;
                IF NOT differs THEN
                    RETURN NULL;
                END IF;
            END IF;
            number := 1;
        EXCEPTION WHEN no_data_found THEN
            IF TG_OP <> 'UPDATE' THEN
                RETURN NULL;
            END IF;
            number := 2;                     -- a row that was to move to a partition that refused it is only old
        WHEN too_many_rows THEN
            number := 2;
        WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR internal_error THEN
            number := 2;                     -- said below
        END;
        WHILE number = 1 LOOP
            %5$s
            %6$s
            INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant, entity)
            VALUES (pg_current_xact_id(), %7$s, 'd', %8$L, tenant, entity) ON CONFLICT DO NOTHING;
            IF NOT moved THEN
                RETURN NULL;
            END IF;
            moved := false;
            tenant := old_tenant;
            entity := old_entity;
        END LOOP;
    END;$body$,
        (SELECT string_agg(pgcache.text_of('new_row', c.attribute, c.type), ', ' ORDER BY c.place) FROM pgcache.collected(w) c),
        (SELECT string_agg(pgcache.text_of('old_row', c.attribute, c.type), ', ' ORDER BY c.place) FROM pgcache.collected(w) c),
        pgcache.collected_differs(w, 'old_row', 'new_row'), pgcache.difference(w, 'old_row', 'new_row'),
        CASE WHEN w.tenant_column IS NOT NULL THEN 'tenant_hash := pgcache.tenant_hash(tenant);' END,
        CASE WHEN w.entity_column IS NOT NULL THEN 'entity_hash := pgcache.entity_hash(''d'', entity);' END,
        pgcache.keys_of(format('(%s)', pgcache.name_hash('d', w.domain)), tenant_hash, entity_hash), w.domain, pgcache.type_checks(w));
END
$$;

-- The body of the trigger function of a watched table. It collects what is concerned into arrays, and writes these to
-- the log in one statement. (Not inside the block that catches errors: a subtransaction that writes takes a
-- transaction id of its own.)
CREATE FUNCTION pgcache.trigger_source(w pgcache.watched) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- so many are read one by one, even if they are to be summed up: enough to tell the tenants in one pass
    enough    bigint  := greatest(20000, w.max_entities + 1::bigint);
    -- one row, one entity: no need to look for equal ones
    is_key    boolean := pgcache.key_columns(w.relation) <@ ARRAY[w.tenant_column, w.entity_column];
    before    text := 'SELECT ' || pgcache.collected_of(w, 'old_row') || ' FROM old_rows old_row';
    after     text := 'SELECT ' || pgcache.collected_of(w, 'new_row') || ' FROM new_rows new_row';
    old_value text := 'SELECT ' || pgcache.collected_of(w, 'OLD');
    new_value text := 'SELECT ' || pgcache.collected_of(w, 'NEW');
    anything  boolean := EXISTS (SELECT FROM pgcache.collected(w) c WHERE c.attribute IS NOT NULL);
    lists     text;
    collect   text;
    collect_all text;
    collect_update text;
BEGIN
    SELECT string_agg(c.list, ', ' ORDER BY c.place) INTO lists FROM pgcache.collected(w) c;
    SELECT format('SELECT count(*), %s INTO number, %s FROM (SELECT %s %s FROM (%%1$s) r LIMIT %s) c',
                  string_agg('array_agg(c.' || c.name || ')', ', ' ORDER BY c.place), lists,
                  CASE WHEN NOT anything OR is_key THEN '' ELSE 'DISTINCT' END,
                  string_agg('r.' || c.name, ', ' ORDER BY c.place), CASE WHEN anything THEN enough ELSE 1 END)
      INTO collect FROM pgcache.collected(w) c;
    SELECT format('IF one_by_one THEN %s; ELSE SELECT count(*), array_agg(c.tenant) INTO number, tenants '
                  'FROM (SELECT DISTINCT r.tenant FROM (%%1$s) r LIMIT %s) c; END IF', collect, enough)
      INTO collect_all;
    SELECT CASE WHEN anything AND u.in_place IS NOT NULL
                THEN format('IF one_by_one THEN SELECT count(*), %1$s, bool_or(c.moved) INTO number, %2$s, moved '
                            'FROM (SELECT %3$s r.* FROM (%4$s) r LIMIT %5$s) c; END IF; '
                            'IF moved OR NOT one_by_one THEN %6$s; END IF',
                            (SELECT string_agg('array_agg(c.' || c.name || ')', ', ' ORDER BY c.place) FROM pgcache.collected(w) c),
                            lists, CASE WHEN is_key THEN '' ELSE 'DISTINCT' END, u.in_place, enough, u.in_full)
                ELSE u.in_full END
      INTO collect_update
      FROM (SELECT pgcache.changes_of_update(w, in_place => true) AS in_place,
                   format(collect_all, pgcache.changes_of_update(w)) AS in_full) u;

    RETURN format($body$
-- made by pgcache.watch()
DECLARE
    number     bigint;
    one_by_one boolean := true;
    moved      boolean;
    nobody     text[]  := ARRAY[NULL::text];
    %1$s text[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        number := %2$s;
    ELSIF TG_LEVEL = 'STATEMENT' THEN
        number := 2;                         -- perhaps none
        %3$s
    END IF;
    BEGIN
        %15$s
        IF TG_LEVEL = 'ROW' THEN
            IF TG_OP = 'INSERT' THEN
                %4$s;
            ELSIF TG_OP = 'DELETE' THEN
                %5$s;
            ELSIF %6$s THEN
                %7$s;
            END IF;
        END IF;
        WHILE TG_LEVEL = 'STATEMENT' AND number = 2 LOOP
            IF TG_OP = 'INSERT' THEN
                %8$s;
            ELSIF TG_OP = 'DELETE' THEN
                %9$s;
            ELSE
                %10$s;
            END IF;
            EXIT WHEN number < %2$s OR NOT one_by_one;
            one_by_one := false;             -- too many entities, but perhaps of few tenants
            number := 2;
        END LOOP;
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR internal_error THEN
        RAISE WARNING 'the cache does not find the columns of %% as they were when pgcache.watch() was called (%%); '
                      'the whole domain is invalidated', TG_RELID::regclass, SQLERRM
            USING HINT = 'Call pgcache.watch() for this table again.';
        number := %2$s;
    END;
    IF number IS NULL OR number = 0 THEN
        RETURN NULL;
    END IF;
    IF number > %11$s OR NOT one_by_one THEN
        -- too many to name: every entity of these tenants, or every tenant
        IF number < %2$s THEN
            SELECT array_agg(t.tenant) INTO tenants FROM (SELECT DISTINCT u.tenant FROM unnest(tenants) AS u (tenant)) t;
        END IF;
        IF number >= %2$s OR cardinality(tenants) > %11$s THEN
            tenants := nobody;
        END IF;
        %12$s
    END IF;
    INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant, entity)
    SELECT pg_current_xact_id(), %13$s, 'd'::"char", h.name, h.tenant, h.entity
      FROM (SELECT w.*, pgcache.tenant_hash(w.tenant) AS tenant_hash, pgcache.entity_hash('d', w.entity) AS entity_hash
              FROM (%14$s) w OFFSET 0) h
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$body$,
        replace(lists, ', ', E' text[];\n    '), enough,
        CASE WHEN NOT EXISTS (SELECT FROM pgcache.cascade_closure c WHERE c.source = w.domain)
             THEN pgcache.single_row_source(w) END,
        format(collect, new_value), format(collect, old_value),
        pgcache.difference(w, 'OLD', 'NEW'), format(collect, old_value || ' UNION ALL ' || new_value),
        format(collect_all, after), format(collect_all, before), collect_update,
        w.max_entities,
        (SELECT string_agg(format('%s := array_fill(NULL::text, ARRAY[cardinality(tenants)]);', c.list), ' ')
           FROM pgcache.collected(w) c WHERE c.place > 1),
        pgcache.keys_of('h.hash', 'h.tenant_hash', 'h.entity_hash'), pgcache.scopes_of_changes(w),
        pgcache.type_checks(w));
END
$$;

-- Makes or replaces the trigger function of a watched table. Returns whether it differs from the one before.
CREATE FUNCTION pgcache.make_trigger_function(w pgcache.watched) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    source text := pgcache.trigger_source(w);
    name   text := format('pgcache.watch_%s', w.id);
BEGIN
    IF (SELECT p.prosrc = source FROM pg_proc p WHERE p.oid = to_regprocedure(name || '()')) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
                   'SET search_path = pg_catalog, pg_temp SET jit = off AS %L', name, source);
    EXECUTE format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', name);
    RETURN true;
END
$$;

