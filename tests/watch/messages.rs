//! Messages for programs outside.

use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_postgres::AsyncMessage;

use crate::stage::{ITEMS, Stage, refusal, run, text};

/// What was sent until now: channels and payloads, in the order of the payloads.
async fn sent(
    stage: &Stage,
    messages: &mut UnboundedReceiver<AsyncMessage>,
) -> Vec<(String, String)> {
    run(&stage.sql, "NOTIFY the_end").await;
    let mut sent = Vec::new();
    while let Some(message) = messages.recv().await {
        if let AsyncMessage::Notification(n) = message {
            if n.channel() == "the_end" {
                break;
            }
            sent.push((n.channel().to_owned(), n.payload().to_owned()));
        }
    }
    sent.sort();
    sent
}

#[tokio::test]
async fn one_for_each_scope_of_a_transaction() {
    let stage = Stage::new(ITEMS).await;
    let (listener, mut messages) = stage.with_messages().await;
    run(
        &listener,
        "LISTEN cache_invalidation; LISTEN \"My Channel\"; LISTEN pgcache; LISTEN the_end",
    )
    .await;
    let change = "UPDATE item SET price = price + 1 WHERE id < 4; UPDATE item SET name = name || 'x' WHERE id < 4";
    run(&stage.sql, change).await;
    assert!(
        sent(&stage, &mut messages).await.is_empty(),
        "off by default"
    );

    run(&stage.sql, "SELECT pgcache.notify()").await;
    let xid = text(
        &stage.sql,
        &format!("BEGIN; {change}; SELECT pg_current_xact_id(); COMMIT"),
    )
    .await;
    let got = sent(&stage, &mut messages).await;
    let got: Vec<(&str, Value)> = got
        .iter()
        .map(|(c, p)| (c.as_str(), serde_json::from_str(p).unwrap()))
        .collect();
    let expected = |tenant: &str| {
        (
            "cache_invalidation",
            serde_json::json!({"tenant_id": tenant, "domain": "item", "version": xid.parse::<u64>().unwrap()}),
        )
    };
    assert_eq!(got, [expected("1"), expected("2")]);
    run(&stage.sql, "BEGIN; DELETE FROM item WHERE id = 1; ROLLBACK; SELECT pgcache.invalidate_scopes('{u,g}', '{/,g}', '{NULL,1}', '{NULL,NULL}')").await;
    assert!(
        sent(&stage, &mut messages).await.is_empty(),
        "rolled back, or no domain"
    );

    let cache = stage.cache();
    cache.notify(Some("My Channel")).await.unwrap();
    run(&stage.sql, "TRUNCATE item").await;
    let got = sent(&stage, &mut messages).await;
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].0, "My Channel");
    assert_eq!(
        serde_json::from_str::<Value>(&got[0].1).unwrap()["tenant_id"],
        Value::Null
    );
    // a tenant too long for a message is left out of it
    run(
        &stage.sql,
        "SELECT pgcache.invalidate('item', repeat('x', 100000))",
    )
    .await;
    let got = sent(&stage, &mut messages).await;
    assert_eq!(
        serde_json::from_str::<Value>(&got[0].1).unwrap()["tenant_id"],
        Value::Null
    );

    cache.notify(None).await.unwrap();
    run(&stage.sql, "SELECT pgcache.doorbell(), pgcache.doorbell()").await;
    run(
        &stage.sql,
        "BEGIN; INSERT INTO item VALUES (1); INSERT INTO item VALUES (2), (3); COMMIT",
    )
    .await;
    assert_eq!(
        sent(&stage, &mut messages).await,
        [("pgcache".to_owned(), String::new())]
    );
    run(
        &stage.sql,
        "SELECT pgcache.doorbell(false); INSERT INTO item VALUES (7)",
    )
    .await;
    assert!(sent(&stage, &mut messages).await.is_empty());
}

#[tokio::test]
async fn a_channel_without_a_usable_name_is_refused() {
    let stage = Stage::new(ITEMS).await;
    for channel in ["''", "repeat('x', 64)", "repeat('ä', 32)"] {
        let (message, _) = refusal(&stage.sql, &format!("SELECT pgcache.notify({channel})")).await;
        assert!(message.contains("1 to 63 bytes"), "{message}");
    }
    run(&stage.sql, "SELECT pgcache.notify(repeat('''', 63))").await;
    stage
        .expect("DELETE FROM item WHERE id = 1", &["item 1/1"])
        .await;
}
