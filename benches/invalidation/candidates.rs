//! One table, and what is done about its changes.

use test_support::{Database, Server};
use tokio_postgres::Client;
use tower_pgcache::{Domain, PgCache, Watch, domain};

const ITEM: Domain = domain!("item");
pub(crate) const ROWS: usize = 10_000;

/// LOGGED, as people make them.
const TABLE: &str = "
    CREATE TABLE item (
        id        integer PRIMARY KEY,
        tenant_id integer NOT NULL,
        price     integer NOT NULL DEFAULT 0,
        note      text    NOT NULL DEFAULT repeat('x', 60)
    );
    INSERT INTO item (id, tenant_id) SELECT n, 0 FROM generate_series(0, 9999) AS n;
    ANALYZE item;";

/// Triggers as a watched table has them, for a function of another design.
const TRIGGERS: &str = "
    CREATE TRIGGER i AFTER INSERT ON item REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION changed();
    CREATE TRIGGER u AFTER UPDATE ON item REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION changed();
    CREATE TRIGGER d AFTER DELETE ON item REFERENCING OLD TABLE AS old_rows
        FOR EACH STATEMENT EXECUTE FUNCTION changed();";

const EMPTY: &str = "
    CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RETURN NULL;
    END
    $$;";

/// As peers do it, with what is in their favour: once per statement, an UNLOGGED table with room for HOT updates,
/// and an order of the tenants in which two statements do not deadlock.
const COUNTER: &str = "
    CREATE UNLOGGED TABLE domain_version (
        tenant_id integer, domain text, version bigint NOT NULL, last_modified timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant_id, domain)
    ) WITH (fillfactor = 10);
    CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            INSERT INTO domain_version AS v (tenant_id, domain, version)
            SELECT c.tenant_id, 'item', 1
              FROM (SELECT tenant_id FROM old_rows UNION SELECT tenant_id FROM new_rows ORDER BY 1) c
                ON CONFLICT (tenant_id, domain) DO UPDATE SET version = v.version + 1, last_modified = now();
        END IF;
        RETURN NULL;
    END
    $$;";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Candidate {
    NoTrigger,
    EmptyTriggers,
    Domain,
    Entities,
    Counter,
    Notify,
}

impl Candidate {
    const ALL: [Self; 6] = [
        Self::NoTrigger,
        Self::EmptyTriggers,
        Self::Domain,
        Self::Entities,
        Self::Counter,
        Self::Notify,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoTrigger => "no trigger",
            Self::EmptyTriggers => "empty triggers",
            Self::Domain => "watched, domain",
            Self::Entities => "watched, tenant and entity",
            Self::Counter => "counter per tenant and domain",
            Self::Notify => "watched, tenant and entity, notify",
        }
    }

    /// The first is what the others are compared with.
    pub(crate) async fn set_up_all(server: &Server) -> Vec<Table> {
        let mut tables = Vec::new();
        for candidate in Self::ALL {
            tables.push(candidate.set_up(server).await);
        }
        tables
    }

    async fn set_up(self, server: &Server) -> Table {
        let database = server.database().await;
        let sql = database.connect().await;
        sql.batch_execute(TABLE).await.unwrap();
        let cache = PgCache::new(database.pool(1));
        let entities = Watch::table("item")
            .tenant_column("tenant_id")
            .entity_column("id");
        match self {
            Self::NoTrigger => {}
            Self::EmptyTriggers => sql
                .batch_execute(&(EMPTY.to_owned() + TRIGGERS))
                .await
                .unwrap(),
            Self::Counter => sql
                .batch_execute(&(COUNTER.to_owned() + TRIGGERS))
                .await
                .unwrap(),
            Self::Domain => cache
                .watch(Watch::table("item").domain(ITEM))
                .await
                .unwrap(),
            Self::Entities => cache.watch(entities).await.unwrap(),
            Self::Notify => {
                cache.watch(entities).await.unwrap();
                cache.notify(Some("cache_invalidation")).await.unwrap();
            }
        }
        Table {
            candidate: self,
            has_log: matches!(self, Self::Domain | Self::Entities | Self::Notify),
            database,
            sql,
        }
    }
}

/// A candidate's table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) candidate: Candidate,
    has_log: bool,
    pub(crate) database: Database,
    pub(crate) sql: Client,
}

impl Table {
    /// Deals the rows out to so many tenants, in the same way for all connections.
    pub(crate) async fn deal(&self, tenants: usize, connections: usize) {
        let update = format!("UPDATE item SET tenant_id = id / {connections} % {tenants}");
        self.sql.batch_execute(&update).await.unwrap();
    }

    /// Takes away what earlier turns have left: in use, autovacuum and the housekeeping of the cache do.
    pub(crate) async fn tidy(&self) {
        self.sql.batch_execute("VACUUM item").await.unwrap();
        if self.has_log {
            let truncate = "TRUNCATE pgcache.invalidation";
            self.sql.batch_execute(truncate).await.unwrap();
        }
    }
}
