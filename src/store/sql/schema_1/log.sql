-- 64 bits of a hash of a text. sha256, because md5() raises an error on servers in FIPS mode.
-- (Standard SQL bodies: names are resolved now, under the fixed search_path that migrations run with.)
CREATE FUNCTION pgcache.hash64(value text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ('x' || encode(substr(sha256(convert_to(value, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint;

-- A tenant or entity as scopes compare it: in small letters, without white space, signs, leading zeros, and what
-- the spellings of a UUID differ in. A handler that parses its path takes `7`, `007` and `+7` for one
-- row, and a UUID in any spelling; a change of that row has to meet them all. (Two values with one normal
-- form are invalidated together, which costs a hit.) As `normal_form` in domain.rs.
CREATE FUNCTION pgcache.normal_form(value text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ltrim(replace(translate(lower(value COLLATE "C"), E'-+{}: \t\r\n', ''), 'urnuuid', ''), '0');

-- The part that a tenant (kind t) or an entity (kind e) has in a scope's key; null: any.
CREATE FUNCTION pgcache.tenant_hash(tenant text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(CASE WHEN tenant IS NULL THEN 't*' ELSE 't=' || pgcache.normal_form(tenant) END);

CREATE FUNCTION pgcache.entity_hash(kind "char", entity text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(CASE WHEN entity IS NULL THEN 'e*'
                           WHEN kind = 'd' THEN 'e=' || pgcache.normal_form(entity)
                           ELSE 'e=' || entity END);

-- A scope's key is the exclusive or of the hashes of its parts: each is hashed once, though they meet in
-- several keys. Two scopes with one key are invalidated together, which costs a hit and no correctness; so
-- 64 bits are plenty.
--
-- The keys that an invalidation carries: its own first, and those of the summaries (`+`: anything below) that
-- a dependency on any tenant or any entity looks at. As `Scope::invalidation_keys`.
CREATE FUNCTION pgcache.invalidation_keys(name bigint, tenant bigint, entity bigint) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ARRAY[name # tenant # entity,
             name # tenant # (-252543570537051072),                  -- hash64('e+')
             name # 6058401063807974705 # entity,                  -- hash64('t+')
             name # 6058401063807974705 # (-252543570537051072)];

CREATE FUNCTION pgcache.name_hash(kind "char", name text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(kind::text || '=' || name);

CREATE FUNCTION pgcache.invalidation_keys(kind "char", name text, tenant text, entity text) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.invalidation_keys(pgcache.name_hash(kind, name), pgcache.tenant_hash(tenant),
                                 pgcache.entity_hash(kind, entity));

-- The key that stands for every scope of one domain, or of one other kind, when prune() had no room for them
-- one by one. As `Scope::coarse_key`.
CREATE FUNCTION pgcache.coarse_key(kind "char", name text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pgcache.hash64(kind::text || '~' || CASE WHEN kind = 'd' THEN name ELSE '' END);

-- Which domains a change of a domain changes too, and theirs, and so on (see pgcache.cascade).
CREATE TABLE pgcache.cascade_closure (
    source text NOT NULL,
    target text NOT NULL,
    PRIMARY KEY (source, target)
);

-- Writes scopes of every kind to the log, in the caller's transaction: kinds[i], names[i], tenants[i],
-- entities[i] are one; a null tenant or entity means every one. A domain's cascades follow, for the same
-- tenant. Takes no lock that another transaction could wait for.
-- (PL/pgSQL, which keeps its plans.)
CREATE FUNCTION pgcache.invalidate_scopes(kinds text[], names text[], tenants text[], entities text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
BEGIN
    INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant, entity)
    SELECT pg_current_xact_id(), pgcache.invalidation_keys(s.kind::"char", s.name, s.tenant, s.entity),
           s.kind::"char", s.name, s.tenant, s.entity
      FROM unnest(kinds, names, tenants, entities) AS s (kind, name, tenant, entity)
        ON CONFLICT DO NOTHING;
    INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant)
    SELECT DISTINCT pg_current_xact_id(), pgcache.invalidation_keys('d', c.target, s.tenant, NULL), 'd'::"char",
           c.target, s.tenant
      FROM unnest(kinds, names, tenants) AS s (kind, name, tenant)
      JOIN pgcache.cascade_closure c ON c.source = s.name
     WHERE s.kind = 'd'
        ON CONFLICT DO NOTHING;
END
$$;

CREATE FUNCTION pgcache.is_domain_name(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN name COLLATE "C" ~ '^[a-z0-9_.-]{1,63}$';

CREATE FUNCTION pgcache.require_domain_name(caller text, name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgcache.is_domain_name(name) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgcache.%: % is not a domain name', caller, coalesce(quote_literal(name), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A domain name has 1 to 63 characters out of a-z, 0-9, "_", "." and "-".';
    END IF;
END
$$;

-- For people and programs of any role that may use the schema: invalidates, in the caller's transaction,
-- what depends on `domain`, of `tenant` (null: every tenant), for `entity` (null: every entity).
CREATE FUNCTION pgcache.invalidate(domain text, tenant text DEFAULT NULL, entity text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgcache.require_domain_name('invalidate', domain);
    PERFORM pgcache.invalidate_scopes(ARRAY['d'], ARRAY[domain], ARRAY[tenant], ARRAY[entity]);
END
$$;

-- Every answer depends on its own resource, and so on the coarse key of all resources.
CREATE FUNCTION pgcache.invalidate_everything() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO pgcache.invalidation (xid, keys, kind, name)
    VALUES (pg_current_xact_id(), ARRAY[pgcache.coarse_key('u', '')], 'u', '*')
        ON CONFLICT DO NOTHING;
END
$$;

