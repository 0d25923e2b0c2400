//! Stored answers, as somebody makes them who may write to the table.

use tokio_postgres::Client;
use twox_hash::XxHash3_128;

/// Gives the entry of a path the checksum that the store would compute for what stands there.
pub async fn seal(client: &Client, path: &str) {
    let query = "SELECT key, pg_snapshot_xmax(snapshot)::text::bigint,
                        ARRAY(SELECT pg_snapshot_xip(snapshot)::text::bigint), probes, unpacked::bigint, body, head
                   FROM pgcache.entry WHERE path = $1";
    let row = client.query_one(query, &[&path]).await.unwrap();
    let lists: [Vec<i64>; 2] = [row.get(2), row.get(3)];
    let unpacked: Option<i64> = row.get(4);
    let (key, body, head): (&[u8], &[u8], &[u8]) = (row.get(0), row.get(5), row.get(6));
    let mut numbers = vec![row.get::<_, i64>(1)];
    for list in lists {
        numbers.push(list.len() as i64);
        numbers.extend(list);
    }
    numbers.extend([unpacked.unwrap_or(i64::MIN), body.len() as i64]);
    let mut entry = key.to_vec();
    entry.extend(numbers.into_iter().flat_map(i64::to_le_bytes));
    entry.extend(XxHash3_128::oneshot(body).to_le_bytes());
    entry.extend(head);
    let checksum = XxHash3_128::oneshot(&entry).to_le_bytes();
    let set = "UPDATE pgcache.entry SET checksum = $2 WHERE path = $1";
    let sealed = client.execute(set, &[&path, &&checksum[..]]).await;
    assert_eq!(sealed.unwrap(), 1);
}

/// So many copies of some entry, with other keys. In SQL, what else is `changed` in the `n`th copy, counted from 1, of the entry `e`:
/// names of columns, each with its value.
pub async fn copies_of_an_entry(client: &Client, count: u32, changed: &str) {
    let columns = "SELECT string_agg(attname, ', ') FROM pg_attribute
                    WHERE attrelid = 'pgcache.entry'::regclass AND attnum > 0 AND attgenerated = ''";
    let columns = client.query_one(columns, &[]).await;
    let columns: String = columns.unwrap().get(0);
    let copies = format!(
        "INSERT INTO pgcache.entry ({columns})
         SELECT {columns} FROM (
            SELECT r.* FROM (SELECT * FROM pgcache.entry LIMIT 1) e, generate_series(1, {count}) n,
                   jsonb_populate_record(NULL::pgcache.entry, to_jsonb(e)
                       || jsonb_build_object('key', sha256(n::text::bytea), {changed})) r) copies"
    );
    client.batch_execute(&copies).await.unwrap();
}
