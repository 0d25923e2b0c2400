use std::error::Error;

use tower_pgcache::{PgCache, Watch};

use super::{Db, ORDER, PRICE, PRODUCT};

/// Who creates the tables; the others wait. Any number that all agree on.
const SET_UP: i64 = 0x7368_6f70;

/// Every version is a new number, so that of two versions of a row the later one has the larger number.
const TABLES: &str = "
    CREATE SEQUENCE shop_version;
    CREATE SEQUENCE shop_order START 1001;
    CREATE TABLE product (
        id        bigint PRIMARY KEY,
        tenant_id text   NOT NULL,
        name      text   NOT NULL,
        category  text   NOT NULL,
        stock     int    NOT NULL DEFAULT 0,
        version   bigint NOT NULL DEFAULT nextval('shop_version')
    );
    CREATE TABLE price (
        product_id bigint PRIMARY KEY,
        tenant_id  text   NOT NULL,
        amount     int    NOT NULL,
        version    bigint NOT NULL DEFAULT nextval('shop_version')
    );
    CREATE TABLE orders (
        id         bigint PRIMARY KEY DEFAULT nextval('shop_order'),
        tenant_id  text   NOT NULL,
        product_id bigint NOT NULL,
        quantity   int    NOT NULL,
        version    bigint NOT NULL DEFAULT nextval('shop_version')
    );
    INSERT INTO product SELECT i, (array['acme', 'bolt', 'crane'])[1 + i % 3], 'Product ' || i,
                               (array['tools', 'toys'])[1 + i % 2], i FROM generate_series(1, 30) i;
    INSERT INTO price SELECT p.id, p.tenant_id, 10 * p.id FROM product p;
    INSERT INTO orders (id, tenant_id, product_id, quantity)
        SELECT i, p.tenant_id, p.id, 1 + i % 5 FROM generate_series(1, 60) i JOIN product p ON p.id = 1 + i % 30;
";

/// Creates the tables unless they are there, and has the cache watch them. Any number of processes may do this at
/// the same time.
pub(super) async fn set_up(db: &Db, cache: &PgCache, watched: bool) -> Result<(), Box<dyn Error>> {
    let mut connection = db.get().await?;
    // in a transaction: the lock goes with it, whatever happens
    let turn = connection.transaction().await?;
    turn.execute("SELECT pg_advisory_xact_lock($1)", &[&SET_UP])
        .await?;
    create(db).await?;
    if watched {
        watch(cache).await?;
    }
    turn.commit().await?;
    Ok(())
}

/// On another connection: what it makes is to be visible to the cache before the lock is released.
async fn create(db: &Db) -> Result<(), Box<dyn Error>> {
    let mut connection = db.get().await?;
    let exists = connection
        .query_one("SELECT to_regclass('product') IS NOT NULL", &[])
        .await?;
    if !exists.get::<_, bool>(0) {
        let transaction = connection.transaction().await?;
        transaction.batch_execute(TABLES).await?;
        transaction.commit().await?;
    }
    Ok(())
}

async fn watch(cache: &PgCache) -> Result<(), Box<dyn Error>> {
    let tables = [
        // a statement that changes more products than this is a change of them all
        Watch::table("product")
            .domain(PRODUCT)
            .entity_column("id")
            .max_entities(25),
        Watch::table("price")
            .domain(PRICE)
            .entity_column("product_id"),
        Watch::table("orders").domain(ORDER).entity_column("id"),
    ];
    for table in tables {
        cache.watch(table.tenant_column("tenant_id")).await?;
    }
    // the answers for a product show its price
    cache.cascade_via(&PRICE, &PRODUCT, "product_id").await?;
    Ok(())
}
