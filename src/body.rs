//! [`ResponseBody`]: what the client reads, and how a body is stored while it is read.
//!
//! 1. A body that is there at once is stored and sent in one piece.
//! 2. Any other one is driven to its end by a task; the client reads what the task has read. A client that is
//!    slow or gone changes nothing.
//! 3. A body that outgrows its limit, or the room that all such bodies share, is handed to the client as it is:
//!    first what was read, then the rest as the client asks for it.
//! 4. A client that is gone is not waited for any longer than a store would be: a body without an end would
//!    keep its handler for ever.
//! 5. Only a body that ended well, without trailers, and as long as `Content-Length` said, is stored.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::engine::{Reservation, Storing};
use crate::error::BoxError;

pin_project_lite::pin_project! {
    /// The body of a response that passed through the cache.
    pub struct ResponseBody<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project_lite::pin_project! {
    #[project = InnerProjection]
    enum Inner<B> {
        /// The inner service's own.
        Passed { #[pin] body: B },
        /// In one piece.
        Whole { data: Option<Bytes> },
        /// None, of an answer whose length would be that of another one (304).
        None,
        /// What was read so far, then the rest.
        Replayed { replay: Replay<B> },
        /// What the driving task reads.
        Driven { frames: mpsc::UnboundedReceiver<Piece<B>>, replay: Option<Replay<B>>, left: Option<u64>, _reservation: Arc<Reservation> },
    }
}

/// What was read of a body, and what follows.
struct Replay<B> {
    chunks: VecDeque<Bytes>,
    rest: Rest<B>,
}

enum Rest<B> {
    Nothing,
    Trailers(HeaderMap),
    Failed(BoxError),
    Body(Pin<Box<B>>),
}

/// What the driving task sends: chunks, and at last the rest.
enum Piece<B> {
    Chunk(Bytes),
    Rest(Rest<B>),
}

impl<B> ResponseBody<B> {
    pub(crate) const fn passed(body: B) -> Self {
        Self {
            inner: Inner::Passed { body },
        }
    }

    pub(crate) fn whole(data: Bytes) -> Self {
        Self {
            inner: Inner::Whole {
                data: Some(data).filter(|d| !d.is_empty()),
            },
        }
    }

    /// Nothing but this error.
    pub(crate) fn broken(error: BoxError) -> Self {
        Self::replayed(VecDeque::new(), Rest::Failed(error))
    }

    pub(crate) const fn empty() -> Self {
        Self {
            inner: Inner::Whole { data: None },
        }
    }

    /// Of a 304: a body of length 0 would make axum say `Content-Length: 0`, which is about the answer that the
    /// client has already (RFC 9110 §8.6).
    pub(crate) const fn none() -> Self {
        Self { inner: Inner::None }
    }

    const fn replayed(chunks: VecDeque<Bytes>, rest: Rest<B>) -> Self {
        Self {
            inner: Inner::Replayed {
                replay: Replay { chunks, rest },
            },
        }
    }
}

/// How much of a body may be kept, and what it must come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max: usize,
    /// The value of `Content-Length`.
    pub(crate) announced: Option<u64>,
}

/// A body on its way into the store.
pub(crate) enum Teed<B> {
    /// It is stored; with the validator that was made for it.
    Whole(Bytes, Option<HeaderValue>),
    /// It is read, and perhaps stored, as the client reads this.
    Streaming(ResponseBody<B>),
    /// It ended in an error before any of it was sent.
    Broken(BoxError),
}

/// Stores the body with `storing` when it is complete, and returns what the client reads. `has_stand_in`: waits for
/// the first of it, so that something else can be sent if the body breaks off before.
pub(crate) async fn tee<B>(body: B, storing: Storing, limits: Limits, has_stand_in: bool) -> Teed<B>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let left = limits.announced.or_else(|| body.size_hint().exact());
    let mut driver = Driver::new(body, storing, limits);
    let end = if has_stand_in {
        driver.read_the_first().await
    } else {
        driver.read_what_is_there().await
    };
    match end {
        Some(End::Failed(error)) if has_stand_in => Teed::Broken(error),
        Some(end) => driver.conclude(end),
        None => {
            let (sender, frames) = mpsc::unbounded_channel();
            let reservation = driver.reservation.clone();
            tokio::spawn(driver.drive(sender));
            let inner = Inner::Driven {
                frames,
                replay: None,
                left,
                _reservation: reservation,
            };
            Teed::Streaming(ResponseBody { inner })
        }
    }
}

/// A body of more chunks than that pays for each, out of what all bodies share: a chunk is not only its bytes, and may
/// have none.
const FREE_CHUNKS: usize = 1024;
const CHUNK: usize = 2 * size_of::<Bytes>();

/// Reads a body for the store.
struct Driver<B> {
    body: Pin<Box<B>>,
    storing: Storing,
    limits: Limits,
    chunks: VecDeque<Bytes>,
    length: usize,
    /// How many frames of data there were, empty ones too.
    frames: usize,
    reservation: Arc<Reservation>,
}

/// How reading came to its end.
enum End {
    Complete,
    Trailers(HeaderMap),
    Failed(BoxError),
    /// There is no room for more.
    Full,
}

impl<B> Driver<B>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn new(body: B, storing: Storing, limits: Limits) -> Self {
        let reservation = Arc::new(Reservation::new(storing.budget()));
        Self {
            body: Box::pin(body),
            storing,
            limits,
            chunks: VecDeque::new(),
            length: 0,
            frames: 0,
            reservation,
        }
    }

    /// `None` if the body has more to come.
    async fn read_what_is_there(&mut self) -> Option<End> {
        poll_fn(|cx| {
            Poll::Ready(match self.poll_end(cx, |_| {}) {
                Poll::Ready(end) => Some(end),
                Poll::Pending => None,
            })
        })
        .await
    }

    /// Waits for the first bytes; `None` if the body has more to come.
    async fn read_the_first(&mut self) -> Option<End> {
        poll_fn(|cx| match self.poll_end(cx, |_| {}) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if self.chunks.is_empty() => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    /// Reads to the end, for the store and for the client.
    async fn drive(mut self, client: mpsc::UnboundedSender<Piece<B>>) {
        // a client that is gone does not matter
        let send = |chunk: &Bytes| drop(client.send(Piece::Chunk(chunk.clone())));
        self.chunks.iter().for_each(send);
        let patience = self.storing.patience();
        let end = tokio::select! {
            biased;
            end = poll_fn(|cx| self.poll_end(cx, send)) => end,
            () = async { client.closed().await; sleep(patience).await } => return,
        };
        let rest = match end {
            End::Complete => {
                // the client has the chunks already
                let _ = self.store();
                Rest::Nothing
            }
            End::Trailers(trailers) => Rest::Trailers(trailers),
            End::Failed(error) => Rest::Failed(error),
            End::Full => Rest::Body(self.body),
        };
        let _ = client.send(Piece::Rest(rest));
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, mut on_chunk: impl FnMut(&Bytes)) -> Poll<End> {
        loop {
            match ready!(self.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(End::Complete),
                Some(Err(error)) => return Poll::Ready(End::Failed(error.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(mut data) => {
                        let chunk = data.copy_to_bytes(data.remaining());
                        self.frames += 1;
                        let fits = self.has_room_for(chunk.len());
                        self.length += chunk.len();
                        if !chunk.is_empty() {
                            on_chunk(&chunk);
                            self.chunks.push_back(chunk);
                        }
                        if !fits {
                            return Poll::Ready(End::Full);
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Poll::Ready(End::Trailers(trailers));
                        }
                    }
                },
            }
        }
    }

    fn has_room_for(&self, more: usize) -> bool {
        let flat_rate = if self.frames > FREE_CHUNKS { CHUNK } else { 0 };
        self.length + more <= self.limits.max && self.reservation.grow(more + flat_rate)
    }

    /// The body of an answer whose reading ended before it was sent.
    fn conclude(self, end: End) -> Teed<B> {
        let (chunks, rest) = match end {
            End::Complete => match self.store() {
                Ok((data, etag)) => return Teed::Whole(data, etag),
                Err(chunks) => (chunks, Rest::Nothing),
            },
            End::Trailers(trailers) => (self.chunks, Rest::Trailers(trailers)),
            End::Failed(error) => (self.chunks, Rest::Failed(error)),
            End::Full => (self.chunks, Rest::Body(self.body)),
        };
        Teed::Streaming(ResponseBody::replayed(chunks, rest))
    }
}

impl<B> Driver<B> {
    /// Stores the body unless it is not what was announced; then the chunks come back.
    fn store(self) -> Result<(Bytes, Option<HeaderValue>), VecDeque<Bytes>> {
        if self
            .limits
            .announced
            .is_some_and(|announced| announced != self.length as u64)
        {
            tracing::warn!(
                announced = self.limits.announced,
                length = self.length,
                "an answer is not as long as its Content-Length and is not stored"
            );
            return Err(self.chunks);
        }
        let data = joined(self.chunks, self.length);
        let etag = self.storing.finish(data.clone(), self.reservation);
        Ok((data, etag))
    }
}

/// All of a body; `None` if it breaks off or is longer than that.
pub(crate) async fn collected<B: Body>(body: B, max: usize) -> Option<Bytes> {
    let mut body = Box::pin(body);
    let mut bytes = BytesMut::new();
    // frames become bytes within `poll_fn`: they need not be `Send`
    poll_fn(|cx| {
        loop {
            match ready!(body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(Some(())),
                Some(Err(_)) => return Poll::Ready(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.put(data);
                    }
                }
            }
            if bytes.len() > max {
                return Poll::Ready(None);
            }
        }
    })
    .await?;
    Some(bytes.freeze())
}

/// Copies one chunk, too: it may be a part of something larger, or have room to grow, and none of that is counted.
fn joined(chunks: VecDeque<Bytes>, length: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(length);
    for chunk in chunks {
        data.extend_from_slice(&chunk);
    }
    data.freeze()
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

impl<B> Replay<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        if let Some(chunk) = self.chunks.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Rest::Body(body) = &mut self.rest {
            return poll_inner(body.as_mut(), cx);
        }
        Poll::Ready(match std::mem::replace(&mut self.rest, Rest::Nothing) {
            Rest::Nothing | Rest::Body(_) => None,
            Rest::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            Rest::Failed(error) => Some(Err(error)),
        })
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.chunks.iter().map(|c| c.len() as u64).sum();
        let rest = match &self.rest {
            Rest::Nothing | Rest::Trailers(_) => SizeHint::with_exact(0),
            Rest::Failed(_) => SizeHint::default(),
            Rest::Body(body) => body.size_hint(),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(read + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(read + upper);
        }
        hint
    }
}

fn poll_inner<B>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Polled
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let frame = ready!(body.poll_frame(cx));
    Poll::Ready(frame.map(|frame| match frame {
        Ok(frame) => Ok(frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))),
        Err(error) => Err(error.into()),
    }))
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match self.project().inner.project() {
            InnerProjection::Passed { body } => poll_inner(body, cx),
            InnerProjection::Whole { data } => {
                Poll::Ready(data.take().map(|data| Ok(Frame::data(data))))
            }
            InnerProjection::None => Poll::Ready(None),
            InnerProjection::Replayed { replay } => replay.poll_frame(cx),
            InnerProjection::Driven {
                frames,
                replay,
                left,
                ..
            } => {
                if let Some(replay) = replay {
                    return replay.poll_frame(cx);
                }
                match ready!(frames.poll_recv(cx)) {
                    Some(Piece::Chunk(chunk)) => {
                        *left = left.and_then(|left| left.checked_sub(chunk.len() as u64));
                        Poll::Ready(Some(Ok(Frame::data(chunk))))
                    }
                    Some(Piece::Rest(rest)) => replay
                        .insert(Replay {
                            chunks: VecDeque::new(),
                            rest,
                        })
                        .poll_frame(cx),
                    // the task panicked (in the inner body) or went with its runtime
                    None => Poll::Ready(Some(Err("the body was not read to its end".into()))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Passed { body } => body.is_end_stream(),
            Inner::Whole { data } => data.is_none(),
            Inner::None => true,
            Inner::Replayed { .. } | Inner::Driven { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Passed { body } => body.size_hint(),
            Inner::Whole { data } => {
                SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64))
            }
            Inner::Replayed { replay } => replay.size_hint(),
            Inner::Driven {
                replay: Some(replay),
                ..
            } => replay.size_hint(),
            Inner::Driven {
                left: Some(left), ..
            } => SizeHint::with_exact(*left),
            Inner::None | Inner::Driven { .. } => SizeHint::default(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.inner {
            Inner::Passed { .. } => "ResponseBody(passed)",
            Inner::Whole { .. } => "ResponseBody(whole)",
            Inner::None => "ResponseBody(none)",
            Inner::Replayed { .. } => "ResponseBody(replayed)",
            Inner::Driven { .. } => "ResponseBody(driven)",
        })
    }
}
