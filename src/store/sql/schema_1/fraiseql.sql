-- The extension pg_fraiseql_cache keeps a version per tenant and domain in a table. This makes each bump there an
-- invalidation here, and takes over its cascade rules of the type `invalidate`. Returns a row for each thing that
-- it did or did not do; none where there is no such table. May be called again, for new rules.
CREATE FUNCTION pgcache.adopt_fraiseql() RETURNS TABLE (item text, outcome text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    versions regclass := to_regclass('fraiseql_cache.domain_version');
    rules    regclass := to_regclass('fraiseql_cache.cascade_rules');
    missing  text;
    rule     record;
    event    text;
BEGIN
    IF versions IS NULL THEN
        RETURN;
    END IF;
    SELECT string_agg(w.name, ', ') INTO missing
      FROM (VALUES ('tenant_id'), ('domain'), ('version')) AS w (name)
     WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = versions AND a.attname = w.name AND NOT a.attisdropped);
    IF missing IS NULL THEN
        IF pgcache.plain_type(versions, 'tenant_id') IS DISTINCT FROM 'uuid' OR pgcache.plain_type(versions, 'domain') IS DISTINCT FROM 'text' THEN
            missing := 'tenant_id uuid or domain text';
        END IF;
    END IF;
    IF missing IS NOT NULL THEN
        RETURN QUERY SELECT versions::text, 'not adopted: it lacks ' || missing;
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = versions AND t.tgfoid = 'pgcache.follow_fraiseql()'::regprocedure) THEN
        FOREACH event IN ARRAY ARRAY['INSERT ON %s REFERENCING NEW TABLE AS new_rows',
                                     'UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows',
                                     'DELETE ON %s REFERENCING OLD TABLE AS old_rows', 'TRUNCATE ON %s'] LOOP
            -- (the oid: more than one schema may do so)
            EXECUTE format('CREATE TRIGGER %I AFTER ' || event || ' FOR EACH STATEMENT EXECUTE FUNCTION pgcache.follow_fraiseql()',
                           format('pgcache_%s_%s', lower(split_part(event, ' ', 1)), 'pgcache.follow_fraiseql()'::regprocedure::oid), versions);
        END LOOP;
        PERFORM pgcache.invalidate_everything();
    END IF;
    RETURN QUERY SELECT versions::text, 'adopted: its versions invalidate';
    IF rules IS NULL THEN
        RETURN;
    END IF;
    SELECT string_agg(w.name, ', ') INTO missing
      FROM (VALUES ('source_domain'), ('target_domain'), ('rule_type')) AS w (name)
     WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = rules AND a.attname = w.name AND NOT a.attisdropped);
    IF missing IS NOT NULL THEN
        RETURN QUERY SELECT rules::text, 'not adopted: it lacks ' || missing;
        RETURN;
    END IF;
    FOR rule IN EXECUTE format('SELECT DISTINCT source_domain::text AS source, target_domain::text AS target, rule_type::text AS type FROM %s', rules) LOOP
        item := format('cascade %s -> %s', rule.source, rule.target);
        outcome := CASE WHEN rule.type IS DISTINCT FROM 'invalidate' THEN format('not adopted: rules of the type %s are not known', coalesce(rule.type, 'NULL'))
                        WHEN pgcache.is_domain_name(lower(rule.source)) IS NOT TRUE OR pgcache.is_domain_name(lower(rule.target)) IS NOT TRUE
                        THEN 'not adopted: not a domain name'
                        WHEN lower(rule.source) = lower(rule.target) THEN 'not adopted: a domain always invalidates itself'
                        ELSE 'adopted' END;
        IF outcome = 'adopted' THEN
            PERFORM pgcache.cascade(lower(rule.source), lower(rule.target));
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE FUNCTION pgcache.follow_fraiseql() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tenants text[];
    domains text[];
BEGIN
    BEGIN
        IF TG_OP = 'INSERT' THEN
            SELECT array_agg(r.tenant), array_agg(r.domain) INTO tenants, domains
              FROM (SELECT DISTINCT pgcache.exact(n.tenant_id, NULL::uuid[])::text AS tenant, lower(pgcache.exact(n.domain, NULL::text[])) AS domain FROM new_rows n) r;
        ELSIF TG_OP = 'DELETE' THEN
            SELECT array_agg(r.tenant), array_agg(r.domain) INTO tenants, domains
              FROM (SELECT DISTINCT pgcache.exact(o.tenant_id, NULL::uuid[])::text AS tenant, lower(pgcache.exact(o.domain, NULL::text[])) AS domain FROM old_rows o) r;
        ELSIF TG_OP = 'UPDATE' THEN
            SELECT array_agg(r.tenant), array_agg(r.domain) INTO tenants, domains
              FROM (SELECT pgcache.exact(n.tenant_id, NULL::uuid[])::text AS tenant, lower(pgcache.exact(n.domain, NULL::text[])) AS domain FROM new_rows n
                     UNION SELECT pgcache.exact(o.tenant_id, NULL::uuid[])::text, lower(pgcache.exact(o.domain, NULL::text[])) FROM old_rows o) r;
        END IF;
    EXCEPTION WHEN syntax_error_or_access_rule_violation THEN
        RAISE WARNING 'the cache does not know % any more (%): everything is invalidated', TG_RELID::regclass, SQLERRM
            USING HINT = 'Call pgcache.adopt_fraiseql() again.';
        PERFORM pgcache.invalidate_everything();
        RETURN NULL;
    END;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pgcache.invalidate_everything();
    ELSE
        PERFORM pgcache.invalidate_scopes(array_agg('d'::text), array_agg(s.domain), array_agg(s.tenant), array_agg(NULL::text))
           FROM unnest(tenants, domains) AS s (tenant, domain) WHERE pgcache.is_domain_name(s.domain);
    END IF;
    RETURN NULL;
END
$$;

