-- Version 1 of the schema, of which this is the first script. `pgcache.` and `/*schema*/` stand for the configured schema, `/*persistence*/` for UNLOGGED (the
-- default) or nothing (`durable(true)`). Runs inside the transaction that also records the version.

-- What a fill or a memory tier may hold is bound to this row: a random id, bound to the cluster, the
-- database and the very table that it stands in, so that a dump restored elsewhere (or here) and a
-- database made from a template do not recognise it. It is as persistent as the entries: what empties
-- them empties it.
CREATE /*persistence*/ TABLE pgcache.epoch (
    singleton         boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    id                uuid        NOT NULL DEFAULT gen_random_uuid(),
    system_identifier bigint      NOT NULL,
    database          oid         NOT NULL,
    relation          oid         NOT NULL,
    -- Everything that this snapshot sees may have been forgotten: no older snapshot is usable.
    horizon           pg_snapshot NOT NULL,
    -- The last transaction before its xmax: whoever sees all up to this one is not older.
    before_horizon    xid8        NOT NULL GENERATED ALWAYS AS ((pg_snapshot_xmax(horizon)::text::bigint - 1)::text::xid8) STORED,
    -- Everything that this snapshot sees stands in `changed`; the rest stands in `invalidation`.
    folded            pg_snapshot NOT NULL,
    -- The largest transaction in `changed`, or that was.
    last_folded       xid8        NOT NULL DEFAULT '0',
    folded_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Everything that `log_floor` sees was deleted from `invalidation`; what `log_floor_next` sees is next.
    log_floor         pg_snapshot NOT NULL,
    log_floor_next    pg_snapshot NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0);

-- Always UNLOGGED: a crash hands out transaction ids again that were never flushed, so whatever is held
-- outside the database must not survive one, even where the tables do.
CREATE UNLOGGED TABLE pgcache.incarnation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid    NOT NULL DEFAULT gen_random_uuid()
);

-- The log. One row per scope and transaction; nobody but the transaction itself can have its xid, so no
-- two transactions ever meet in this index. (Of all keys: two scopes with one hash have other summaries.)
CREATE /*persistence*/ TABLE pgcache.invalidation (
    xid    xid8        NOT NULL,
    keys   bigint[]    NOT NULL,             -- pgcache.invalidation_keys(kind, name, tenant, entity)
    kind   "char"      NOT NULL,             -- d domain, u uri, t tenant, g group
    name   text        NOT NULL,
    tenant text,                             -- null: every tenant
    entity text,                             -- null: every entity
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX invalidation_xid ON pgcache.invalidation (xid, keys);

-- The folded log: for every key the transactions that changed it last (see pgcache.fold).
CREATE /*persistence*/ TABLE pgcache.changed (
    key   bigint PRIMARY KEY,
    xids  xid8[] NOT NULL,                   -- descending, at most 64
    since xid8,                              -- not null: others between this one and the last of `xids`
    -- The key that stands for this one and its like when there are too many; null: nothing does (see coarsen).
    coarse bigint,
    -- Not null: this row also stands for changes that were forgotten, all of which this snapshot sees.
    seen   pg_snapshot
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- How often a domain was changed since the epoch; for people. Kept up by fold().
CREATE /*persistence*/ TABLE pgcache.change_count (
    key           bigint      PRIMARY KEY,   -- of (name, tenant): a tenant may be longer than an index can hold
    tenant        text,
    name          text        NOT NULL,
    version       bigint      NOT NULL,
    last_modified timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- What a lookup reads of an entry besides its head and body, in one value: to send a column takes an eighth of the time in which an
-- entry is found, and an array takes three times as long as another column. In Postgres's binary formats, one after the other:
-- each says how long it is, but for the checksum, which is the rest. The checksum covers what stands in here but for the times and the
-- cost: by that snapshot lookup_unsearched.sql judges, and the other statements send the columns that they judged by, too. (plpgsql:
-- array_send() is said to be STABLE, so that a function in SQL would not be inlined, and planned anew by each statement.)
CREATE FUNCTION pgcache.meta(born_at timestamptz, expires_at timestamptz, cost float8, unpacked integer, snapshot pg_snapshot,
                             probes bigint[], checksum bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    -- named in full instead of `SET search_path`, which takes as long as all the rest
    RETURN pg_catalog.timestamptz_send(born_at) OPERATOR(pg_catalog.||) pg_catalog.timestamptz_send(expires_at)
           OPERATOR(pg_catalog.||) pg_catalog.float8send(cost)
           OPERATOR(pg_catalog.||) pg_catalog.int8send(coalesce(unpacked, '-9223372036854775808'::pg_catalog.int8))
           OPERATOR(pg_catalog.||) pg_catalog.pg_snapshot_send(snapshot)
           OPERATOR(pg_catalog.||) pg_catalog.array_send(probes) OPERATOR(pg_catalog.||) checksum;
END
$$;

CREATE /*persistence*/ TABLE pgcache.entry (
    key        bytea       PRIMARY KEY,
    epoch      uuid        NOT NULL,
    snapshot   pg_snapshot NOT NULL,         -- taken before the handler ran
    probes     bigint[]    NOT NULL,         -- keys that an invalidation of this entry would carry
    born_at    timestamptz NOT NULL,         -- now minus this is its Age (RFC 9111 §4.2.3)
    expires_at timestamptz NOT NULL,         -- fresh until then
    keep_until timestamptz NOT NULL,         -- of some use until then, though stale
    revalidatable boolean  NOT NULL,         -- has a validator that its handler knows
    -- Not null: this is no answer, but says which request fields the answers for this URI vary with; each is
    -- stored under a key of its own, of which the latest stand in `variants`.
    vary       text[],
    variants   bytea[],
    -- for people
    authority  text        NOT NULL,
    path       text        NOT NULL,
    route      text,                         -- the pattern that matched, or the layer's place
    tenant     text,
    scopes     text[]      NOT NULL,
    checksum   bytea       NOT NULL,         -- of key, snapshot, probes, head, body and unpacked
    head       bytea       NOT NULL,
    body       bytea       NOT NULL,
    unpacked   integer,                      -- not null: the body is compressed (Zstandard), and is that long without
    cost       float8      NOT NULL DEFAULT 0, -- seconds that its handler took
    meta       bytea       NOT NULL GENERATED ALWAYS AS (
        pgcache.meta(born_at, expires_at, cost, unpacked, snapshot, probes, checksum)) STORED,
    -- How much it is used, and was (see the janitor): log2 of a decaying count.
    value      float8      NOT NULL DEFAULT extract(epoch FROM clock_timestamp())::float8 / 3600
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0,
        toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_cost_delay = 0);
-- No room is left in pages (fillfactor 100). What follows was measured without `meta`. Size on the disk as a multiple of what is
-- stored (pgcache.weight), after 10 rewrites of all entries in random order by other sizes (10 % more or less) with VACUUM after
-- each eighth, as the janitor does, on PostgreSQL 15; and how many of the updates were HOT:
--
--     body             fillfactor 70     85              90              100
--       300 bytes      1.43  100 %                       1.14  99 %      1.13  76 %
--     1,000 bytes      1.78  100 %       1.43  99 %      1.40  94 %      1.21  48 %
--     2,500 bytes                                        1.21  99 %      1.21  84 %
--     8,000 bytes      1.28  100 %                       1.30  98 %      1.26  84 %
--
-- What is not HOT costs a second entry of the index until VACUUM: nothing that the rewrites' time would show.
--
-- With autovacuum alone (`cargo bench --bench bloat`: 100,000 entries, all of them rewritten in a minute, now with `meta`), the
-- largest multiple in the course of 10 rewrites: 1.28 for bodies of 1,000 bytes, 2.15 for 4,000. With the server's
-- cost delay it was 1.98 and 3.86 after five of them, and rising: at its pace VACUUM of what stands out of line took
-- longer than the minute after which it would be due again. The janitor's VACUUM makes no pauses either.
--
-- Bodies are sent as they are and often compressed already; pglz costs more than it saves (1.2 ms for 64 KB). Out of line
-- (EXTERNAL) they can be counted without being read. Those below 2 KB stand in the row itself: a lookup need not go to
-- another table.
ALTER TABLE pgcache.entry ALTER body SET STORAGE EXTERNAL;
-- Looked at for every entry that is found: of a row that is too large, the rest goes out of line first.
ALTER TABLE pgcache.entry ALTER meta SET STORAGE MAIN;

-- Nothing (the default), or partitions.sql (`partitions(n)`).
/*partitions*/
-- The tables that hold entries: `entry`, or its partitions.
CREATE VIEW pgcache.entry_table AS
    SELECT c.oid AS relation, c.reltoastrelid AS toast
      FROM (SELECT 'pgcache.entry'::regclass::oid AS relation
             UNION ALL
            SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = 'pgcache.entry'::regclass) t
      JOIN pg_class c ON c.oid = t.relation
     WHERE c.relkind = 'r';

-- Where the lease of a key stands. Keys are hashes.
CREATE FUNCTION pgcache.lease_place(key bytea) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN get_byte(key, 0) * 256 + get_byte(key, 1);

-- Who is filling a key. A released lease stays until another one takes its place: `released` is the transaction that stored
-- the answer. There are 65,536 places, so that however many fills there are, the table does not outgrow 15 MB, and nobody has
-- to clear it up: a claim overwrites what stands in its place, in the same page (HOT), unless that is the lease of another
-- key, and held. Of 100 fills under way, one in 650 finds it so, and goes without a lease.
CREATE UNLOGGED TABLE pgcache.lease (
    key        bytea       NOT NULL,
    holder     bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    released   xid8,
    place      integer     PRIMARY KEY GENERATED ALWAYS AS (pgcache.lease_place(key)) STORED
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- How much is stored: counted by the janitor's last round, and kept up by those who store.
CREATE /*persistence*/ TABLE pgcache.room (
    singleton     boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    entries       bigint      NOT NULL DEFAULT 0,
    bytes         bigint      NOT NULL DEFAULT 0,
    -- What was added by and by.
    added_entries bigint      NOT NULL DEFAULT 0,
    added_bytes   bigint      NOT NULL DEFAULT 0,
    -- What was replaced and deleted since somebody vacuumed, and when that was.
    churn         bigint      NOT NULL DEFAULT 0,
    vacuumed_at   timestamptz NOT NULL DEFAULT '-infinity',
    pause         interval    NOT NULL DEFAULT '1 s',
    -- How many times the table was vacuumed, and how large it was then; 0: there was no room in it.
    vacuums       bigint      NOT NULL DEFAULT 0,
    size          bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0);

-- Where the janitor is on its walk through `entry`, and what it has counted by classes of use: in this round, and in
-- the last one.
CREATE /*persistence*/ TABLE pgcache.walk (
    singleton      boolean  PRIMARY KEY DEFAULT true CHECK (singleton),
    page           bigint   NOT NULL DEFAULT 0, -- the next one; 0: a round begins
    threshold      float8   NOT NULL DEFAULT '-Infinity', -- entries of less use go
    reference      float8   NOT NULL DEFAULT 0,
    entries        bigint[] NOT NULL DEFAULT '{}',
    bytes          bigint[] NOT NULL DEFAULT '{}',
    added_entries  bigint   NOT NULL DEFAULT 0, -- as in `room`, when it began
    added_bytes    bigint   NOT NULL DEFAULT 0,
    past_reference float8   NOT NULL DEFAULT 0,
    past_entries   bigint[] NOT NULL DEFAULT '{}',
    past_bytes     bigint[] NOT NULL DEFAULT '{}'
) WITH (autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0,
        toast.autovacuum_vacuum_threshold = 50, toast.autovacuum_vacuum_scale_factor = 0);

-- Which instance does the housekeeping next: a lease on the database's clock, without session state.
CREATE UNLOGGED TABLE pgcache.housekeeping (
    task text        PRIMARY KEY,
    due  timestamptz NOT NULL
);

