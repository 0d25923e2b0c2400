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
