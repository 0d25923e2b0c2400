//! Fills a cache over HTTP, and looks at every answer.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode};
use test_support::wire::Client;
use tokio::time::sleep;

use crate::Error;
use crate::app::body;
use crate::wrk::ITEMS;

/// More than a cache needs; a candidate that does not cache stops here.
const PASSES: usize = 5;
/// Some store answers in the background.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks for every item until no handler is called, or a few times.
///
/// The client panics if it is not answered. In a task of its own that ends this candidate alone.
pub(crate) async fn warm(address: SocketAddr, size: usize) -> Result<(), Error> {
    tokio::spawn(passes(address, size)).await?
}

/// How many answers were computed so far.
pub(crate) async fn calls(address: SocketAddr) -> Result<u64, Error> {
    tokio::spawn(async move { count(&mut Client::http1(address).await, address).await }).await?
}

async fn passes(address: SocketAddr, size: usize) -> Result<(), Error> {
    let mut client = Client::http1(address).await;
    let mut calls = count(&mut client, address).await?;
    for _ in 0..PASSES {
        pass(&mut client, address, size).await?;
        let before = std::mem::replace(&mut calls, count(&mut client, address).await?);
        if calls == before {
            break;
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn pass(client: &mut Client, address: SocketAddr, size: usize) -> Result<(), Error> {
    for id in 1..=ITEMS {
        if get(client, address, &format!("/item/{id}")).await? != body(id, size) {
            return Err(format!("item {id} came back changed").into());
        }
    }
    Ok(())
}

async fn count(client: &mut Client, address: SocketAddr) -> Result<u64, Error> {
    let number = get(client, address, "/calls").await?;
    Ok(std::str::from_utf8(&number)?.parse()?)
}

/// `wrk` sends the same `Host`, which is part of a cache's key.
async fn get(client: &mut Client, address: SocketAddr, path: &str) -> Result<Bytes, Error> {
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Body::empty())?;
    let (head, body) = client.send(request).await.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("{path} was answered with {}", head.status).into());
    }
    Ok(to_bytes(Body::new(body), usize::MAX).await?)
}
