//! Bodies that are not what they seem.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::routing::{get as getting, post};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;

/// The same frame again and again, at once.
struct Endless {
    frame: &'static [u8],
    left: u64,
    announced: Option<u64>,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let frame = Frame::data(Bytes::from_static(self.frame));
        Poll::Ready(Some(Ok(frame)))
    }

    fn size_hint(&self) -> SizeHint {
        self.announced
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn endless(frame: &'static [u8], left: u64, announced: Option<u64>) -> Body {
    Body::new(Endless {
        frame,
        left,
        announced,
    })
}

#[tokio::test]
async fn chunks_take_room_whatever_is_in_them() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .fill_memory(100_000)
        .build()
        .unwrap();
    let handler = getting(|uri: http::Uri| {
        ready(match uri.path() {
            "/few" => endless(b"x", 1000, None),
            "/many" => endless(b"x", 10_000, None),
            "/empty" => endless(b"", u64::MAX, None),
            _ => unreachable!(),
        })
    });
    let app = app(handler, cache.layer().ttl(MINUTE));
    assert_eq!(get(&app, "/few").await.body.len(), 1000);
    assert_eq!(get(&app, "/many").await.body.len(), 10_000);
    // never ends, and the client gets to see that
    let request = Request::get("/empty").body(Body::empty()).unwrap();
    let answer = app.clone().oneshot(request).await.unwrap();
    let mut body = answer.into_body();
    let frame = timeout(HANG, body.frame()).await.expect("a frame");
    assert!(frame.unwrap().unwrap().into_data().unwrap().is_empty());
    drop(body);
    settled(&cache).await;
    assert!(get(&app, "/few").await.is_hit());
    assert!(!get(&app, "/many").await.is_hit());
}

#[tokio::test]
async fn a_question_is_read_as_far_as_it_says() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4)).build().unwrap();
    let layer = cache.layer().ttl(MINUTE).safe_post(100);
    let app = app(post(|| ready("x")), layer);
    for (left, status) in [(5, 200), (6, 400), (u64::MAX, 400)] {
        let request = Request::post("/").body(endless(b"x", left, Some(5)));
        let answer = timeout(HANG, send(&app, request.unwrap())).await;
        assert_eq!(answer.expect("an answer").status, status, "{left}");
    }
}
