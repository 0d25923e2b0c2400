//! Clients that do with their connections what nobody should, and what the others notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get as on_get;
use test_support::wire::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::site::{MINUTE, Site, ask, echoing, exchange, get};

/// A handler that answers when it is let.
#[derive(Clone)]
struct Gate {
    open: watch::Sender<bool>,
    entered: Arc<AtomicUsize>,
}

impl Gate {
    fn closed() -> Self {
        Self {
            open: watch::Sender::new(false),
            entered: Arc::default(),
        }
    }

    fn app(&self, site: &Site) -> Router {
        let gate = self.clone();
        let handler = || async move {
            gate.entered.fetch_add(1, Ordering::SeqCst);
            gate.open.subscribe().wait_for(|open| *open).await.unwrap();
            "through the gate"
        };
        Router::new().fallback(handler).layer(site.layer())
    }

    async fn entered(&self, times: usize) {
        until("the handlers run", || {
            self.entered.load(Ordering::SeqCst) >= times
        })
        .await;
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < MINUTE, "never: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

async fn connect_and_send(address: std::net::SocketAddr, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn a_client_that_closes_its_half_holds_nobody_up() {
    const CLIENTS: usize = 20;
    let site = Site::new().await;
    let gate = Gate::closed();
    let app = gate.app(&site);
    let address = serve(app.clone()).await;
    let mut half_closed = Vec::new();
    for n in 0..CLIENTS {
        let request = format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut socket = connect_and_send(address, &request).await;
        gate.entered(n + 1).await;
        socket.shutdown().await.unwrap();
        half_closed.push(socket);
    }
    gate.open.send_replace(true);
    for n in 0..CLIENTS {
        let request = format!("GET /{n} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = exchange(address, request.as_bytes()).await;
        assert!(answer.ends_with("through the gate"), "{answer}");
    }
    site.settled().await;
    for mut socket in half_closed {
        let mut rest = Vec::new();
        let ended = timeout(MINUTE, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the server keeps the connection");
    }
    assert_eq!(site.cache.stats().waiting, 0);
    assert!(get(&app, "/0", &[("host", "a")]).await.is_hit());
}

#[tokio::test]
async fn a_thousand_fills_that_are_abandoned_leave_nothing_behind() {
    const MANY: usize = 1000;
    let site = Site::new().await;
    let gate = Gate::closed();
    let app = gate.app(&site);
    get_through(&gate, &app).await;
    site.settled().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let (tasks_before, heap_before) = (tasks(), heap::living().bytes);

    let clients: Vec<_> = (0..MANY)
        .map(|n| {
            let app = app.clone();
            tokio::spawn(async move { get(&app, &format!("/{n}"), &[]).await })
        })
        .collect();
    gate.entered(MANY + 1).await;
    // as many wait for those
    let followers: Vec<_> = (0..MANY)
        .map(|n| {
            let app = app.clone();
            tokio::spawn(async move { get(&app, &format!("/{n}"), &[]).await })
        })
        .collect();
    until("they wait", || site.cache.stats().waiting == MANY as u64).await;
    for client in clients.iter().chain(&followers) {
        client.abort();
    }
    for client in clients.into_iter().chain(followers) {
        assert!(client.await.unwrap_err().is_cancelled());
    }
    until("nobody waits", || site.cache.stats().waiting == 0).await;
    site.settled().await;
    until("the tasks end", || tasks() <= tasks_before + 8).await;
    let left = heap::living().bytes - heap_before;
    assert!(left < 32 << 20, "{left} bytes are left");

    gate.open.send_replace(true);
    for n in (0..MANY).step_by(50) {
        assert_eq!(
            get(&app, &format!("/{n}"), &[]).await.text(),
            "through the gate"
        );
    }
}

/// So that whatever a first request starts has been started.
async fn get_through(gate: &Gate, app: &Router) {
    gate.open.send_replace(true);
    get(app, "/first", &[]).await;
    gate.open.send_replace(false);
}

#[tokio::test]
async fn a_body_that_never_ends_holds_up_its_own_request_alone() {
    let site = Site::new().await;
    let app = Router::new()
        .route("/", on_get(|| async { "page" }).post(|| async { "done" }))
        .fallback(crate::site::echo)
        .layer(site.layer().safe_post(1 << 16));
    let plain = Router::new()
        .route(
            "/plain",
            on_get(|| async { "page" }).post(|| async { "done" }),
        )
        .layer(site.layer());
    let address = serve(plain.merge(app)).await;
    let stalled = [
        // part of the question, and so read by the cache
        "POST /search HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nhalf",
        "QUERY /search HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nhalf",
        "GET /search HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ];
    let mut sockets = Vec::new();
    for request in stalled.iter().cycle().take(60) {
        sockets.push(connect_and_send(address, request).await);
    }
    // this handler does not read it, and nobody else does
    let request =
        "POST /plain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmore\r\n";
    let mut endless = connect_and_send(address, request).await;
    let mut answer = vec![0; 12];
    timeout(MINUTE, endless.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 200");

    for round in 0..2 {
        for request in [
            "POST /search HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5\r\n\r\nwhole",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        ] {
            let answer = exchange(address, request.as_bytes()).await;
            assert_eq!(answer.contains("pgcache; hit"), round == 1, "{answer}");
        }
        site.settled().await;
    }
}

#[tokio::test]
async fn requests_in_one_packet_get_their_own_answers_in_order() {
    let site = Site::new().await;
    let address = site.serve_echo().await;
    let mut requests = String::new();
    for n in 0..20 {
        // every other one is asked for twice, so that hits overtake fills if anything can
        let path = n / 2 * 2;
        requests += &format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n");
        requests += &format!(
            "POST /post{n} HTTP/1.1\r\nhost: a\r\ncontent-length: 18\r\n\r\nGET /x HTTP/1.1\r\n\r"
        );
    }
    requests += "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answers = exchange(address, requests.as_bytes()).await;
    let lines: Vec<&str> = answers
        .lines()
        .filter_map(|line| line.split(" {").next())
        .filter(|line| line.starts_with("GET /") || line.starts_with("POST /"))
        .collect();
    let mut expected = Vec::new();
    for n in 0..20 {
        expected.push(format!("GET /{}", n / 2 * 2));
        expected.push(format!("POST /post{n}"));
    }
    expected.push("GET /last".to_owned());
    assert_eq!(lines, expected, "{answers}");
}

#[tokio::test]
async fn methods_that_nobody_handles_neither_get_nor_end_what_is_stored() {
    let site = Site::new().await;
    let app = Router::new()
        .route("/", on_get(|| async { "page" }))
        .layer(site.layer());
    get(&app, "/", &[]).await;
    site.settled().await;
    let methods = [
        "OPTIONS", "TRACE", "CONNECT", "PURGE", "BAN", "get", "Get", "PUT", "DELETE", "PATCH",
        "QUERY", "XYZ",
    ];
    for method in methods {
        let answer = ask(&app, method, "/", &[]).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_ne!(answer.body, "page");
        assert!(get(&app, "/", &[]).await.is_hit(), "{method}");
    }
    let upgrade = [("connection", "upgrade"), ("upgrade", "evil")];
    let answer = get(&app, "/", &upgrade).await;
    assert!(answer.cache_status().ends_with("detail=upgrade"));
    assert!(get(&app, "/", &[]).await.is_hit());

    // where everything is handled, what only reads ends nothing either
    let app = echoing(site.layer());
    get(&app, "/echo", &[]).await;
    site.settled().await;
    for method in ["OPTIONS", "TRACE"] {
        let answer = ask(&app, method, "/echo", &[]).await;
        assert!(answer.text().starts_with(method));
        assert!(get(&app, "/echo", &[]).await.is_hit(), "{method}");
    }
}
