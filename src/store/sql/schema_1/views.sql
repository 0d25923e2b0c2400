-- Views for people. Nothing here decides what is valid but `entry_state`.

-- How often each domain was changed since the epoch: the number of transactions that did, for a tenant or (null) for
-- all tenants at once. Survives pruning. The time is that of the statement, not of the commit.
CREATE VIEW pgcache.domain_versions AS
    SELECT v.tenant, v.domain, sum(v.version)::bigint AS version, max(v.last_modified) AS last_modified
      FROM (SELECT c.tenant, c.name AS domain, c.version, c.last_modified FROM pgcache.change_count c
             UNION ALL
            -- what is not folded yet (indexes: invalidation_xid)
            SELECT i.tenant, i.name, count(DISTINCT i.xid), max(i.at)
              FROM pgcache.epoch p
              JOIN pgcache.invalidation i ON i.xid >= pg_snapshot_xmax(p.folded)
                                             OR i.xid = ANY (ARRAY(SELECT pg_snapshot_xip(p.folded)))
             WHERE i.kind = 'd' GROUP BY i.tenant, i.name) v
     GROUP BY v.tenant, v.domain;

CREATE VIEW pgcache.watched_tables AS
    SELECT w.relation AS "table", w.domain, w.tenant_column, w.entity_column, w.columns, w.max_entities, w.always,
           -- changed: watch() would make them otherwise now, for instance because a column got another type or the key is gone
           (SELECT CASE WHEN NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = w.relation) THEN 'table dropped'
                        WHEN bool_or(t.found_state IS NULL AND t.wanted_state IS NOT NULL AND t.relation = w.relation) THEN 'missing'
                        WHEN bool_or(t.found_state = 'D') THEN 'disabled'
                        WHEN bool_or(t.command IS NOT NULL AND t.relation = w.relation)
                             OR (SELECT p.prosrc FROM pg_proc p WHERE p.oid = to_regprocedure(format('pgcache.watch_%s()', w.id)))
                                IS DISTINCT FROM pgcache.trigger_source(w)
                        THEN 'changed'
                        ELSE 'enabled' END
              FROM pgcache.watch_trigger t WHERE t.id = w.id) AS triggers,
           -- partitions and children that were added after watch(): what is written to them directly is not seen
           ARRAY(SELECT DISTINCT t.relation FROM pgcache.watch_trigger t
                  WHERE t.id = w.id AND t.found_state IS NULL AND t.wanted_state IS NOT NULL AND t.relation <> w.relation) AS unwatched,
           -- columns that were renamed, dropped, or got another type: every change invalidates the whole domain
           ARRAY(SELECT c.attribute FROM unnest(w.columns || w.tenant_column || w.entity_column) AS c (attribute)
                  WHERE c.attribute IS NOT NULL
                    AND (NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = w.relation AND a.attname = c.attribute
                                                                  AND NOT a.attisdropped AND a.attgenerated <> 'v')
                         OR c.attribute IN (w.tenant_column, w.entity_column)
                            AND pgcache.plain_type(w.relation, c.attribute) IS NULL)) AS broken_columns
      FROM pgcache.watched w;

CREATE VIEW pgcache.recent_invalidations AS
    SELECT i.at, i.xid,
           CASE i.kind WHEN 'd' THEN 'domain' WHEN 'u' THEN 'uri' WHEN 't' THEN 'tenant' WHEN 'g' THEN 'group'
                       ELSE i.kind::text END AS kind,
           i.name, i.tenant, i.entity
      FROM pgcache.invalidation i
     ORDER BY i.xid DESC, i.kind, i.name, i.tenant, i.entity;

-- The rules, and (rule = false) what follows from them.
CREATE VIEW pgcache.cascades AS
    SELECT c.source, c.target, r.source IS NOT NULL AS rule, r.entity_via
      FROM pgcache.cascade_closure c
      LEFT JOIN pgcache.cascade_rule r ON r.source = c.source AND r.target = c.target;

-- What is stored. `valid` is worked out for the rows that are asked for, so with a filter or a LIMIT it is cheap. (Not with
-- clock_timestamp(): a view with a volatile function is worked out whole.)
CREATE VIEW pgcache.entries AS
    SELECT encode(e.key, 'hex') AS key, e.authority, e.path, e.route, e.tenant, e.scopes, e.vary AS varies_by,
           statement_timestamp() - e.born_at AS age, e.expires_at - statement_timestamp() AS fresh_for,
           e.expires_at > statement_timestamp() AS fresh,
           coalesce((SELECT s.usable AND s.unchanged FROM pgcache.entry_state s WHERE s.key = e.key), false) AS valid,
           octet_length(e.head) + octet_length(e.body) AS bytes, e.unpacked
      FROM pgcache.entry e;

CREATE VIEW pgcache.entries_by_route AS
    SELECT e.route, count(*) AS entries, count(*) FILTER (WHERE e.expires_at > clock_timestamp()) AS fresh,
           sum(octet_length(e.head) + octet_length(e.body)) AS bytes,
           avg(clock_timestamp() - e.born_at) AS average_age
      FROM pgcache.entry e WHERE e.vary IS NULL
     GROUP BY e.route;

CREATE VIEW pgcache.expiring_by_hour AS
    SELECT date_trunc('hour', e.expires_at) AS hour, count(*) AS entries,
           sum(octet_length(e.head) + octet_length(e.body)) AS bytes
      FROM pgcache.entry e WHERE e.vary IS NULL
     GROUP BY 1;

CREATE VIEW pgcache.stats AS
    SELECT (SELECT count(*) FROM pgcache.entry) AS entries,
           (SELECT count(*) FROM pgcache.entry e WHERE e.expires_at <= clock_timestamp()) AS expired,
           (SELECT sum(pg_total_relation_size(t.relation)) FROM pgcache.entry_table t)::bigint AS entry_bytes,
           (SELECT count(*) FROM pgcache.invalidation) AS log_rows,
           (SELECT count(*) FROM pgcache.changed) AS changed_keys,
           pg_total_relation_size('pgcache.invalidation') + pg_total_relation_size('pgcache.changed') AS log_bytes,
           p.id AS epoch, clock_timestamp() - p.folded_at AS since_fold,
           (SELECT count(*) FROM pgcache.watched) AS watched_tables,
           EXISTS (SELECT FROM pgcache.current) AS usable
      FROM (SELECT) one LEFT JOIN pgcache.epoch p ON true;
