//! A leak hunt: random requests over tenants, principals, cookies, hosts, nested routers, header and query
//! variants, through random layer orders and settings. Each answer names the request that it was made for, and no
//! answer may reach anybody who may not share it.
//!
//! Many small applications share one schema on purpose. `LEAK_SEED` repeats a run, `LEAK_REQUESTS` makes it
//! longer or shorter, and `LEAK_ONLY=1,2` asks these requests alone, one after the other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod asked;
mod holes;
mod judge;
mod serve;
mod settings;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use test_support::http::send;

use asked::Asked;
use judge::may_share;
use settings::App;

pub(crate) const APPS: u64 = 32;
const CLIENTS: usize = 12;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| from_env("LEAK_SEED", u64::from(std::process::id())))
}

#[derive(Default)]
struct Hunt {
    next: AtomicU64,
    hits: AtomicU64,
    /// Hits that were made for a request with a witness or credentials.
    personal: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_reaches_anybody_who_may_not_share_it() {
    let requests = from_env("LEAK_REQUESTS", 200_000);
    println!("LEAK_SEED={}", seed());
    let database = test_support::database().await;
    let pool = serve::pool(&database);
    let apps: Vec<App> = (0..APPS)
        .map(|number| App::random(seed(), number))
        .collect();
    let (routers, caches): (Vec<Router>, Vec<_>) =
        apps.iter().map(|app| serve::router(app, &pool)).unzip();
    for cache in &caches {
        cache.ready().await.unwrap();
    }
    let (apps, routers) = (Arc::new(apps), Arc::new(routers));
    let hunt = Arc::new(Hunt::default());
    if let Ok(only) = std::env::var("LEAK_ONLY") {
        for number in only.split(',') {
            ask(&hunt, &apps, &routers, number.parse().unwrap()).await;
            for cache in &caches {
                cache.settled().await;
            }
        }
        return;
    }
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (hunt, apps, routers) = (hunt.clone(), apps.clone(), routers.clone());
            tokio::spawn(async move {
                loop {
                    let number = hunt.next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return;
                    }
                    ask(&hunt, &apps, &routers, number).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let (hits, personal) = (
        hunt.hits.load(Ordering::Relaxed),
        hunt.personal.load(Ordering::Relaxed),
    );
    println!("{requests} requests, {hits} hits, {personal} of them with an identity");
    assert!(
        hits > requests / 10,
        "only {hits} hits: hardly anything was tested"
    );
    assert!(
        personal > requests / 100,
        "only {personal} hits with an identity"
    );
}

async fn ask(hunt: &Hunt, apps: &[App], routers: &[Router], number: u64) {
    let asked = Asked::random(seed(), number, APPS);
    let app = &apps[asked.app as usize];
    let answer = send(&routers[asked.app as usize], asked.request()).await;
    let made_for = answer.header("x-made-for").unwrap();
    if !asked.head_only {
        assert_eq!(
            answer.text(),
            made_for,
            "the body is another one's: {asked:?}"
        );
    }
    if made_for == asked.number.to_string() {
        return;
    }
    let made_for = Asked::random(seed(), made_for.parse().unwrap(), APPS);
    if let Err(why) = may_share(app, &made_for, &asked) {
        let status = answer.cache_status();
        panic!(
            "{why} ({status})\n\
             asked:    {asked:?}\n          {}\n\
             made for: {made_for:?}\n          {}\n\
             decided by {:?}\nin {app:?}\n\
             LEAK_SEED={} LEAK_ONLY={},{}",
            known_of(app, &asked),
            known_of(app, &made_for),
            app.settings_for(asked.path),
            seed(),
            made_for.number,
            asked.number,
        );
    }
    assert!(answer.is_hit() || answer.cache_status().ends_with("; collapsed"));
    hunt.hits.fetch_add(1, Ordering::Relaxed);
    if asked.identity().is_some() && app.knows_identities(asked.path) {
        hunt.personal.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the authentication layer has inserted before the cache decides.
fn known_of(app: &App, asked: &Asked) -> String {
    match asked.identity() {
        None => "nobody".to_owned(),
        Some(identity) if app.knows_identities(asked.path) => format!("{identity:?}"),
        Some(identity) => format!("{identity:?}, but the cache is asked first"),
    }
}
