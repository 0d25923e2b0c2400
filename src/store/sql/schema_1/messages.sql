-- Messages for programs outside: one per transaction, tenant and domain, as JSON, on `channel`. Null: none any more.
-- NOTIFY takes a lock of the whole database until commit, which caps the rate of writers, and a transaction that
-- notifies cannot be prepared (two-phase commit).
CREATE FUNCTION pgcache.notify(channel text DEFAULT 'cache_invalidation') RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
BEGIN
    IF channel = '' OR length(convert_to(channel, 'UTF8')) > 63 THEN
        RAISE EXCEPTION 'pgcache.notify: a channel has a name of 1 to 63 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- waits for who is writing to the log, and those that come wait for it; so not for long
    LOCK TABLE pgcache.invalidation IN SHARE ROW EXCLUSIVE MODE;
    DROP TRIGGER IF EXISTS announce ON pgcache.invalidation;
    IF channel IS NOT NULL THEN
        EXECUTE format('CREATE TRIGGER announce AFTER INSERT ON pgcache.invalidation REFERENCING NEW TABLE AS new_rows '
                       'FOR EACH STATEMENT EXECUTE FUNCTION pgcache.announce(%L)', channel);
    END IF;
END
$$;

CREATE FUNCTION pgcache.announce() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- a payload has less than 8000 bytes; without its tenant the message says more than happened, never less
    PERFORM pg_notify(TG_ARGV[0], json_build_object('tenant_id', CASE WHEN length(convert_to(n.tenant, 'UTF8')) < 1000 THEN n.tenant END,
                                                    'domain', n.name, 'version', n.xid)::text)
       FROM (SELECT DISTINCT r.tenant, r.name, r.xid::text::bigint AS xid FROM new_rows r WHERE r.kind = 'd') n;
    RETURN NULL;
END
$$;

-- A bare message per transaction, for the instances of this cache that listen.
CREATE FUNCTION pgcache.doorbell("on" boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
BEGIN
    IF "on" = EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = 'pgcache.invalidation'::regclass AND t.tgname = 'doorbell') THEN
        RETURN;
    END IF;
    LOCK TABLE pgcache.invalidation IN SHARE ROW EXCLUSIVE MODE;
    DROP TRIGGER IF EXISTS doorbell ON pgcache.invalidation;
    IF "on" THEN
        CREATE TRIGGER doorbell AFTER INSERT ON pgcache.invalidation FOR EACH STATEMENT EXECUTE FUNCTION pgcache.ring();
    END IF;
END
$$;

-- The channel is the name of this schema.
CREATE FUNCTION pgcache.ring() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify(TG_TABLE_SCHEMA, '');
    RETURN NULL;
END
$$;

