//! Bodies: what reaches the client and what is stored, however the body comes and however the client reads.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::handler::HandlerWithoutStateExt;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::TokioIo;
use test_support::Database;
use test_support::http::{get as fetch, send};
use test_support::wire::{Client, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_pgcache::{PgCache, PgCacheBuilder};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(20);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Piece = Result<Frame<Bytes>, BoxError>;

/// A body that the test feeds.
struct Fed(mpsc::Receiver<Piece>);

fn fed() -> (mpsc::Sender<Piece>, Body) {
    let (sender, pieces) = mpsc::channel(64);
    (sender, Body::new(Fed(pieces)))
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.0.poll_recv(cx)
    }
}

/// A body that plays its pieces, at once or with a pause before each, and counts them.
struct Played {
    pieces: VecDeque<Piece>,
    /// `Some(true)`: the next poll finds nothing yet.
    pause: Option<bool>,
    taken: Arc<AtomicUsize>,
}

impl http_body::Body for Played {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if let Some(pause) = &mut self.pause {
            *pause = !*pause;
            if !*pause {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.taken.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(self.pieces.pop_front())
    }
}

fn played(pieces: impl IntoIterator<Item = Piece>, paused: bool) -> Body {
    counted(pieces, paused, &Arc::default())
}

fn counted(
    pieces: impl IntoIterator<Item = Piece>,
    paused: bool,
    taken: &Arc<AtomicUsize>,
) -> Body {
    Body::new(Played {
        pieces: pieces.into_iter().collect(),
        pause: paused.then_some(true),
        taken: taken.clone(),
    })
}

fn data(chunk: impl Into<Bytes>) -> Piece {
    Ok(Frame::data(chunk.into()))
}

fn trailers() -> Piece {
    let mut fields = HeaderMap::new();
    fields.insert("x-sum", "7".parse().unwrap());
    Ok(Frame::trailers(fields))
}

/// An application with a cache around it; its handler gives each answer out once.
#[derive(Clone)]
struct Site {
    app: Router,
    cache: PgCache,
    answers: Arc<Mutex<HashMap<String, Response>>>,
    /// Goes with the site.
    _database: Database,
}

impl Site {
    async fn new(settings: impl FnOnce(PgCacheBuilder) -> PgCacheBuilder) -> Self {
        let database = test_support::database().await;
        let cache = settings(PgCache::builder(database.pool(4)).lookup_deadline(HANG))
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        let answers = Arc::new(Mutex::new(HashMap::new()));
        let waiting: Arc<Mutex<HashMap<String, Response>>> = answers.clone();
        let handler = move |request: Request| {
            let answer = waiting.lock().unwrap().remove(request.uri().path());
            ready(answer.unwrap_or_else(|| StatusCode::NOT_FOUND.into_response()))
        };
        let app = Router::new()
            .fallback(handler)
            .layer(cache.layer().ttl(MINUTE));
        Self {
            app,
            cache,
            answers,
            _database: database,
        }
    }

    /// The answer to the next request for `path`; after that there is none but the stored one.
    fn will_answer(&self, path: &str, answer: impl IntoResponse) {
        let answer = answer.into_response();
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    async fn request(&self, path: &str) -> Response {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        self.app.clone().oneshot(request).await.unwrap()
    }

    /// What is stored, if anything.
    async fn stored(&self, path: &str) -> Option<Bytes> {
        timeout(HANG, self.cache.settled()).await.expect("settled");
        let answer = fetch(&self.app, path).await;
        answer.is_hit().then_some(answer.body)
    }
}

async fn next(body: &mut Body) -> Bytes {
    let frame = timeout(HANG, body.frame()).await.expect("a frame");
    frame.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn a_stream_is_sent_as_it_comes_and_stored_when_it_ends() {
    let site = Site::new(|b| b).await;
    let (sender, body) = fed();
    site.will_answer("/", body);
    let mut body = site.request("/").await.into_body();
    for chunk in ["one ", "two ", "three"] {
        sender.send(data(chunk)).await.unwrap();
        assert_eq!(next(&mut body).await, chunk);
        assert_eq!(site.cache.stats().stored, 0);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
    assert_eq!(
        site.stored("/").await.as_deref(),
        Some(&b"one two three"[..])
    );
}

struct Case {
    name: &'static str,
    status: u16,
    announced: Option<u64>,
    pieces: fn() -> Vec<Piece>,
    stored: bool,
}

/// With a `max_body` of ten.
const CASES: &[Case] = &[
    case("complete", || vec![data("ab"), data("c"), data("d")], true),
    case("one-chunk", || vec![data("abc")], true),
    case("nothing", Vec::new, true),
    case("only-empty-chunks", || vec![data(""), data("")], true),
    case(
        "empty-chunks-between",
        || vec![data(""), data("a"), data(""), data("b"), data("")],
        true,
    ),
    Case {
        status: 204,
        ..case("no-content", Vec::new, true)
    },
    case("exactly-max", || vec![data("0123456789")], true),
    case(
        "exactly-max-in-parts",
        || vec![data("01234"), data("56789")],
        true,
    ),
    case("too-big", || vec![data("0123456789!")], false),
    case(
        "too-big-in-parts",
        || {
            vec![
                data("01234"),
                data("56789"),
                data("!"),
                data("and"),
                data("more"),
            ]
        },
        false,
    ),
    case(
        "too-big-with-trailers",
        || vec![data("0123456789"), data("!"), trailers()],
        false,
    ),
    announced("announced", 4, || vec![data("ab"), data("cd")], true),
    announced("announced-empty", 0, Vec::new, true),
    announced(
        "announced-too-big",
        12,
        || vec![data("012345"), data("678901")],
        false,
    ),
    announced("announced-too-much", 5, || vec![data("abc")], false),
    announced(
        "announced-too-little",
        2,
        || vec![data("ab"), data("c")],
        false,
    ),
    case("error-first", || vec![Err("broken".into())], false),
    case(
        "error-after-a-chunk",
        || vec![data("a"), Err("broken".into())],
        false,
    ),
    announced(
        "error-at-the-end",
        2,
        || vec![data("ab"), Err("broken".into())],
        false,
    ),
    case(
        "error-after-too-much",
        || vec![data("0123456789!"), data("x"), Err("broken".into())],
        false,
    ),
    case("trailers", || vec![data("a"), trailers()], false),
    case("only-trailers", || vec![trailers()], false),
];

const fn case(name: &'static str, pieces: fn() -> Vec<Piece>, stored: bool) -> Case {
    Case {
        name,
        status: 200,
        announced: None,
        pieces,
        stored,
    }
}

const fn announced(
    name: &'static str,
    length: u64,
    pieces: fn() -> Vec<Piece>,
    stored: bool,
) -> Case {
    Case {
        announced: Some(length),
        ..case(name, pieces, stored)
    }
}

/// Everything that comes: data, trailers, and whether it ended with an error.
async fn read(mut body: Body) -> (Vec<u8>, Option<HeaderMap>, bool) {
    let (mut all, mut fields) = (Vec::new(), None);
    while let Some(frame) = timeout(HANG, body.frame()).await.expect("a frame") {
        match frame.map(Frame::into_data) {
            Ok(Ok(chunk)) => all.extend_from_slice(&chunk),
            Ok(Err(frame)) => fields = frame.into_trailers().ok(),
            Err(_) => return (all, fields, true),
        }
    }
    (all, fields, false)
}

#[tokio::test]
async fn the_client_gets_what_the_handler_sent_and_only_what_is_whole_is_stored() {
    let site = Site::new(|b| b.max_body(10)).await;
    for case in CASES {
        for paused in [false, true] {
            let path = format!("/{}/{paused}", case.name);
            let response = || {
                let mut response = Response::new(played((case.pieces)(), paused));
                *response.status_mut() = StatusCode::from_u16(case.status).unwrap();
                if let Some(length) = case.announced {
                    response
                        .headers_mut()
                        .insert("content-length", length.into());
                }
                response
            };
            site.will_answer(&path, response());
            let answer = site.request(&path).await;
            assert_eq!(answer.status(), case.status, "{path}");
            let got = read(answer.into_body()).await;
            let expected = read(response().into_body()).await;
            assert_eq!(got, expected, "{path}");
            let stored = case.stored.then_some(expected.0);
            assert_eq!(
                site.stored(&path).await.as_deref(),
                stored.as_deref(),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_is_stored_although_its_client_left() {
    let site = Site::new(|b| b).await;
    let address = serve(site.app.clone()).await;

    // in this process, before and after the first chunk
    for (path, chunks) in [("/head", 0), ("/chunk", 1)] {
        let (sender, body) = fed();
        site.will_answer(path, body);
        let mut body = site.request(path).await.into_body();
        for _ in 0..chunks {
            sender.send(data("one ")).await.unwrap();
            assert_eq!(next(&mut body).await, "one ");
        }
        drop(body);
        sender.send(data("two")).await.unwrap();
        drop(sender);
        let expected = "one ".repeat(chunks) + "two";
        assert_eq!(
            site.stored(path).await.as_deref(),
            Some(expected.as_bytes())
        );
    }

    // over a socket
    let (sender, body) = fed();
    site.will_answer("/socket", body);
    let mut client = Client::http1(address).await;
    let request = http::Request::get("/socket").header("host", "a");
    let response = client.send(request.body(Body::empty()).unwrap()).await;
    sender.send(data("one ")).await.unwrap();
    assert_eq!(next(&mut Body::new(response.into_body())).await, "one ");
    drop(client);
    sender.send(data("two")).await.unwrap();
    drop(sender);
    timeout(HANG, site.cache.settled()).await.expect("settled");
    let again = http::Request::get("/socket").header("host", "a");
    let answer = send(&site.app, again.body(Body::empty()).unwrap()).await;
    assert!(answer.is_hit());
    assert_eq!(answer.text(), "one two");
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_nobody() {
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 160; // more than the sockets' buffers hold
    let site = Site::new(|b| b.max_body(32 << 20)).await;
    let address = serve(site.app.clone()).await;
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let pieces = (0..CHUNKS).map(move |_| data(chunk.clone()));
    site.will_answer("/big", played(pieces, true));

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut lazy = socket.connect(address).await.unwrap();
    lazy.write_all(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0];
    lazy.read_exact(&mut first).await.unwrap();
    timeout(HANG, site.cache.settled()).await.expect("stored");
    assert_eq!(site.cache.stats().stored, 1);

    let mut client = Client::http1(address).await;
    let request = http::Request::get("/big").header("host", "a");
    let answer = client.send(request.body(Body::empty()).unwrap()).await;
    let (head, body) = answer.into_parts();
    assert!(
        head.headers["cache-status"]
            .to_str()
            .unwrap()
            .starts_with("pgcache; hit")
    );
    let body = timeout(HANG, body.collect()).await.unwrap().unwrap();
    assert_eq!(body.to_bytes().len(), CHUNK * CHUNKS);

    // and the lazy one gets everything in the end
    let mut rest = Vec::new();
    timeout(HANG, lazy.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.len() > CHUNK * CHUNKS && rest.ends_with(b"\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_body_that_is_too_big_is_read_as_its_client_reads() {
    for paused in [false, true] {
        let site = Site::new(|b| b.max_body(1000)).await;
        let taken = Arc::new(AtomicUsize::new(0));
        let pieces = (0..1000).map(|_| data(vec![b'x'; 400]));
        site.will_answer("/", counted(pieces, paused, &taken));
        let mut body = site.request("/").await.into_body();
        for read in 1..=20 {
            assert_eq!(next(&mut body).await.len(), 400);
            // three chunks were enough to see that it is too big
            assert!(taken.load(Ordering::SeqCst) <= 3.max(read + 1), "{read}");
        }
        // and that is all, though there is time
        timeout(HANG, site.cache.settled()).await.expect("settled");
        assert!(taken.load(Ordering::SeqCst) <= 21);
        let (rest, _, failed) = read(body).await;
        assert_eq!((rest.len(), failed), (400 * 980, false));
        assert_eq!(site.stored("/").await, None);
    }
}

#[tokio::test]
async fn memory_for_bodies_is_bounded_and_given_back() {
    let site = Site::new(|b| b.fill_memory(100)).await;
    let (sender, body) = fed();
    site.will_answer("/first", body);
    let first = site.request("/first").await;
    sender.send(data(vec![b'x'; 80])).await.unwrap();
    let mut first = first.into_body();
    assert_eq!(next(&mut first).await.len(), 80);

    // there is no room for these, whether they come at once or not
    for (path, paused) in [("/at-once", false), ("/paused", true)] {
        let pieces = || (0..8).map(|_| data("0123456789"));
        site.will_answer(path, played(pieces(), paused));
        let (got, _, failed) = read(site.request(path).await.into_body()).await;
        assert_eq!((got.len(), failed), (80, false), "{path}");
    }
    assert_eq!(site.cache.stats().stored, 0);

    drop(sender);
    assert!(first.frame().await.is_none());
    drop(first);
    assert_eq!(site.stored("/first").await.unwrap().len(), 80);
    // answers of every kind of end, some of which nobody reads
    for i in 0..20 {
        let path = format!("/again/{i}");
        let mut pieces: Vec<Piece> = (0..8).map(|_| data("0123456789")).collect();
        match i % 4 {
            0 => pieces.push(Err("broken".into())),
            1 => pieces.push(trailers()),
            2 => pieces.extend((0..8).map(|_| data("0123456789"))),
            _ => {}
        }
        site.will_answer(&path, played(pieces, i % 3 == 0));
        let response = site.request(&path).await;
        if i % 5 != 0 {
            read(response.into_body()).await;
        }
        timeout(HANG, site.cache.settled()).await.expect("settled");
    }
    for path in ["/at-once", "/paused"] {
        let pieces = (0..8).map(|_| data("0123456789"));
        site.will_answer(path, played(pieces, path == "/paused"));
        read(site.request(path).await.into_body()).await;
        assert_eq!(site.stored(path).await.unwrap().len(), 80, "{path}");
    }
}

/// An application for both versions of HTTP; `/n` says how often it was called.
async fn wire_site(database: &Database) -> (PgCache, std::net::SocketAddr) {
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = move || ready(format!("call {}", calls.fetch_add(1, Ordering::SeqCst) + 1));
    let trailing = || ready(Body::new(played([data("ab"), trailers()], true)));
    let app = Router::new()
        .route("/count", get(count.clone()))
        .route("/head-first", get(count).post(|body: String| ready(body)))
        .route("/trailers", get(trailing))
        .layer(cache.layer().ttl(MINUTE));
    (cache, serve(app).await)
}

async fn exchange(
    client: &mut Client,
    method: &str,
    path: &str,
    body: &str,
) -> (HeaderMap, Bytes, Option<HeaderMap>) {
    let uri = match client {
        Client::Http1(_) => path.to_owned(),
        Client::Http2(_) => format!("http://site{path}"),
    };
    let mut request = http::Request::builder().method(method).uri(uri);
    if matches!(client, Client::Http1(_)) {
        request = request.header("host", "site");
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = timeout(HANG, client.send(request))
        .await
        .expect("a response");
    assert_eq!(response.status(), 200);
    let (head, body) = response.into_parts();
    let body = timeout(HANG, body.collect()).await.unwrap().unwrap();
    let fields = body.trailers().cloned();
    (head.headers, body.to_bytes(), fields)
}

#[tokio::test]
async fn both_versions_of_http_and_head_get_the_same() {
    fn hit(headers: &HeaderMap) -> bool {
        let status = headers["cache-status"].to_str().unwrap();
        status.starts_with("pgcache; hit")
    }
    for http2 in [false, true] {
        let database = test_support::database().await;
        let (cache, address) = wire_site(&database).await;
        let (one, two) = (Client::http1(address).await, Client::http2(address).await);
        let (mut client, mut other) = if http2 { (two, one) } else { (one, two) };

        let (headers, body, _) = exchange(&mut client, "GET", "/count", "").await;
        assert!(!hit(&headers));
        assert_eq!(body, "call 1");
        cache.settled().await;
        for (method, expected) in [("GET", "call 1"), ("HEAD", "")] {
            let (headers, body, _) = exchange(&mut client, method, "/count", "").await;
            assert!(hit(&headers));
            assert_eq!(body, expected);
            assert_eq!(headers["content-length"], "6");
        }

        let (headers, body, _) = exchange(&mut client, "HEAD", "/head-first", "").await;
        assert!(!hit(&headers) && body.is_empty());
        assert_eq!(headers["content-length"], "6");
        cache.settled().await;
        let (headers, body, _) = exchange(&mut client, "GET", "/head-first", "").await;
        assert!(!hit(&headers));
        assert_eq!(body, "call 3");
        cache.settled().await;
        let (headers, body, _) = exchange(&mut client, "GET", "/head-first", "").await;
        assert!(hit(&headers));
        assert_eq!(body, "call 3");

        // a change that came by the other version concerns the same resource
        let (headers, body, _) = exchange(&mut other, "POST", "/head-first", "sent").await;
        assert_eq!(
            headers["cache-status"],
            "pgcache; fwd=method; fwd-status=200"
        );
        assert_eq!(body, "sent");
        let (headers, body, _) = exchange(&mut client, "GET", "/head-first", "").await;
        assert!(!hit(&headers));
        assert_eq!(body, "call 4");

        let client = if http2 { &mut client } else { &mut other };
        for _ in 0..2 {
            let (headers, body, fields) = exchange(client, "GET", "/trailers", "").await;
            assert!(!hit(&headers));
            assert_eq!(body, "ab");
            assert_eq!(fields.unwrap()["x-sum"], "7");
            cache.settled().await;
        }
    }
}

#[tokio::test]
async fn events_reach_the_client_while_the_stream_is_open() {
    let site = Site::new(|b| b).await;
    let address = serve(site.app.clone()).await;
    for content_type in ["text/event-stream", "application/x-ndjson"] {
        for version in [1, 2] {
            let path = format!("/{content_type}/{version}");
            let (sender, body) = fed();
            site.will_answer(&path, ([("content-type", content_type)], body));
            let mut client = match version {
                1 => Client::http1(address).await,
                _ => Client::http2(address).await,
            };
            let request = http::Request::get(format!("http://a{path}"));
            let response = client.send(request.body(Body::empty()).unwrap());
            let response = timeout(HANG, response).await.expect("a head");
            let mut body = Body::new(response.into_body());
            for event in ["data: 1\n\n", "data: 2\n\n"] {
                sender.send(data(event)).await.unwrap();
                assert_eq!(next(&mut body).await, event);
            }
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_passes_through() {
    let database = test_support::database().await;
    let cache = PgCache::new(database.pool(2));
    let echo = |mut request: Request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            word.reverse();
            io.write_all(&word).await.unwrap();
        });
        let switch = [("connection", "upgrade"), ("upgrade", "echo")];
        (StatusCode::SWITCHING_PROTOCOLS, switch)
    };
    let app = Router::new()
        .route("/", any(echo))
        .layer(cache.layer().ttl(MINUTE));
    let mut client = Client::http1(serve(app).await).await;
    let request = http::Request::get("/")
        .header("host", "a")
        .header("connection", "Upgrade")
        .header("upgrade", "echo");
    let response = client.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"abcd").await.unwrap();
    let mut word = [0; 4];
    timeout(HANG, io.read_exact(&mut word))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&word, b"dcba");
    assert_eq!(cache.stats().bypasses, 1);
}

/// The body says `abc`, and the second time it comes from the store.
async fn works<S, B>(cache: &PgCache, path: &str, inner: S)
where
    S: Service<http::Request<String>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: std::fmt::Debug + Send,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = cache.layer().ttl(MINUTE).layer(inner);
    for hit in [false, true] {
        let request = http::Request::get(path).body(String::new()).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let status = response.headers()["cache-status"].to_str().unwrap();
        assert_eq!(status.starts_with("pgcache; hit"), hit, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "abc", "{path}");
        cache.settled().await;
    }
}

/// A service that answers with what `body` makes.
macro_rules! answering {
    ($body:expr) => {
        service_fn(move |_: http::Request<String>| {
            ready(Ok::<_, Infallible>(http::Response::new($body)))
        })
    };
}

#[tokio::test]
async fn every_kind_of_body_and_service_will_do() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(2))
        .lookup_deadline(HANG)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let full = || Full::new(Bytes::from_static(b"abc"));

    works(
        &cache,
        "/full",
        answering!(Full::new(Bytes::from_static(b"abc"))),
    )
    .await;
    works(&cache, "/string", answering!("abc".to_owned())).await;
    works(&cache, "/axum", answering!(Body::from("abc"))).await;
    works(&cache, "/boxed", answering!(full().boxed())).await;
    works(&cache, "/unsync", answering!(full().boxed_unsync())).await;
    let bytes = || VecDeque::from(*b"abc");
    works(&cache, "/deque", answering!(Full::new(bytes()))).await;
    let chain = || Bytes::from_static(b"a").chain(VecDeque::from(*b"bc"));
    works(&cache, "/chain", answering!(Full::new(chain()))).await;
    let stream = || {
        let pieces = [Ok(Frame::data(&b"ab"[..])), Ok(Frame::data(&b"c"[..]))];
        StreamBody::new(futures_util::stream::iter(
            pieces.map(|p: Result<_, io::Error>| p),
        ))
    };
    works(&cache, "/stream", answering!(stream())).await;
    works(
        &cache,
        "/clone-box",
        BoxCloneService::new(answering!(Full::new(Bytes::from_static(b"abc")))),
    )
    .await;
    let stack = ServiceBuilder::new()
        .map_request(|request: http::Request<String>| request)
        .map_response(|response: http::Response<_>| response)
        .map_err(|error: Infallible| -> BoxError { match error {} })
        .service(answering!(Body::from("abc")));
    works(&cache, "/stack", stack).await;

    let empty = cache
        .layer()
        .ttl(MINUTE)
        .layer(answering!(Empty::<VecDeque<u8>>::new()));
    let request = http::Request::get("/empty").body(String::new()).unwrap();
    let body = empty.oneshot(request).await.unwrap().into_body();
    assert!(body.collect().await.unwrap().to_bytes().is_empty());
}

/// An error of its own, which is not even a `std::error::Error`.
#[derive(Debug, PartialEq)]
struct Broken;

#[tokio::test]
async fn the_inner_services_error_stays_what_it_is() {
    let database = test_support::database().await;
    let cache = PgCache::new(database.pool(2));
    let broken = service_fn(|_: http::Request<String>| ready(Err::<Response, _>(Broken)));
    let service = cache.layer().ttl(MINUTE).layer(broken);
    for method in ["GET", "POST", "OPTIONS"] {
        let request = http::Request::builder().method(method).uri("/");
        let outcome = service
            .clone()
            .oneshot(request.body(String::new()).unwrap())
            .await;
        assert_eq!(outcome.err(), Some(Broken), "{method}");
    }
    cache.settled().await;
    assert_eq!(cache.stats().stored, 0);
}

#[tokio::test]
async fn the_layer_fits_wherever_axum_takes_one() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let layer = || cache.layer().ttl(MINUTE);
    let handler = || ready("abc");
    let app = Router::new()
        .route("/method", get(handler).layer(layer()))
        .route("/method-route", get(handler).route_layer(layer()))
        .route(
            "/handler",
            get(axum::handler::Handler::layer(handler, layer())),
        )
        .route_service("/service", layer().layer(handler.into_service()))
        .nest(
            "/nest",
            Router::new().route("/", get(handler)).layer(layer()),
        )
        .merge(
            Router::new()
                .route("/route", get(handler))
                .route_layer(layer()),
        )
        .fallback_service(layer().layer(handler.into_service()));
    for path in [
        "/method",
        "/method-route",
        "/handler",
        "/service",
        "/nest",
        "/route",
        "/fallback",
    ] {
        assert!(fetch(&app, path).await.is_stored(), "{path}");
        cache.settled().await;
        let answer = fetch(&app, path).await;
        assert!(answer.is_hit(), "{path}");
        assert_eq!(answer.text(), "abc", "{path}");
    }
}

/// Each clone has to be polled before it is called.
#[derive(Default)]
struct Strict {
    ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request> for Strict {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        ready(Ok("abc".into_response()))
    }
}

#[tokio::test]
async fn the_service_that_is_ready_is_the_one_that_is_called() {
    let database = test_support::database().await;
    let cache = PgCache::new(database.pool(2));
    let mut service = cache.layer().ttl(MINUTE).layer(Strict::default());
    let mut clone = service.clone();
    for method in ["GET", "POST", "OPTIONS", "GET"] {
        let request = || {
            let request = http::Request::builder().method(method).uri("/");
            request.body(Body::empty()).unwrap()
        };
        let one = service.ready().await.unwrap().call(request());
        // the next one is prepared before the first one is polled
        let two = clone.ready().await.unwrap().call(request());
        assert_eq!(two.await.unwrap().status(), 200);
        assert_eq!(one.await.unwrap().status(), 200);
        cache.settled().await;
    }
}
