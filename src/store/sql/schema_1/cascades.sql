-- From the commit of this transaction on, a change of `source` is a change of `target` too, for the same tenant: of
-- every entity; or, with `entity_via`, of the one that this column of the changed row of a watched table
-- names. Cascades go on from there. It waits for the transactions that have changed something, and those that come wait for it; so
-- not for long. A statement that has begun may still go by the old rules.
CREATE FUNCTION pgcache.cascade(source text, target text, entity_via name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
BEGIN
    PERFORM pgcache.require_domain_name('cascade', source);
    PERFORM pgcache.require_domain_name('cascade', target);
    IF source = target THEN
        RAISE EXCEPTION 'pgcache.cascade: % cannot be its own target', quote_literal(source)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOCK TABLE pgcache.watched, pgcache.cascade_rule IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pgcache.cascade_rule r WHERE r.source = cascade.source AND r.target = cascade.target
                                                    AND r.entity_via IS NOT DISTINCT FROM cascade.entity_via) THEN
        RETURN;
    END IF;
    -- who has changed the source and not committed yet did so under the old rules
    LOCK TABLE pgcache.invalidation IN SHARE ROW EXCLUSIVE MODE;
    INSERT INTO pgcache.cascade_rule AS r VALUES (source, target, entity_via)
        ON CONFLICT ON CONSTRAINT cascade_rule_pkey DO UPDATE SET entity_via = EXCLUDED.entity_via;
    PERFORM pgcache.apply_cascades();
    -- what was stored until now may have missed a change of the source
    PERFORM pgcache.invalidate(source);
END
$$;

CREATE FUNCTION pgcache.uncascade(source text, target text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOCK TABLE pgcache.watched, pgcache.cascade_rule IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM pgcache.cascade_rule r WHERE r.source = uncascade.source AND r.target = uncascade.target;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pgcache.apply_cascades();
    RETURN true;
END
$$;

-- Works out what follows from the rules: the closure, and the trigger functions, into which it is written.
CREATE FUNCTION pgcache.apply_cascades() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM pgcache.cascade_closure;
    INSERT INTO pgcache.cascade_closure (source, target)
    WITH RECURSIVE way AS (
        SELECT r.source, r.target FROM pgcache.cascade_rule r
         UNION
        SELECT w.source, r.target FROM way w JOIN pgcache.cascade_rule r ON r.source = w.target
    )
    SELECT w.source, w.target FROM way w;
    PERFORM pgcache.forget_dropped();
    PERFORM pgcache.make_trigger_function(w) FROM pgcache.watched w;
END
$$;

-- Refreshes a materialized view and invalidates its domain (default: the name of the view, without `mv_` or `tv_`).
CREATE FUNCTION pgcache.refresh(view regclass, "concurrently" boolean DEFAULT false, domain text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF domain IS NULL THEN
        SELECT pg_catalog.regexp_replace(pg_catalog.lower(c.relname), '^[mt]v_', '') INTO domain
          FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) view;
    END IF;
    PERFORM pgcache.invalidate(domain);
    EXECUTE pg_catalog.format('REFRESH MATERIALIZED VIEW %s %s', CASE WHEN "concurrently" THEN 'CONCURRENTLY' END, view);
END
$$;

