//! Interim responses (1xx) of the upstream, on their way to the client.
//!
//! A tower service returns one response, and hyper's server sends no others. So an interim response takes a way
//! of its own: the request carries its connection's [`Outbox`] in its extensions, and the connection's
//! [`InterimIo`] writes what is in there to the socket, below hyper.
//!
//! 1. Only between two messages of hyper's: what was written before is out, and nothing of the final response is.
//!    What cannot be sent there, because a client that pipelines does not read, is dropped.
//! 2. A client of HTTP/1.0 gets none (RFC 9110 §15.2).
//! 3. `100 (Continue)` is hyper's: it sends its own when the request's body is asked for.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{HeaderMap, Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Passes on what the upstream sends before its final response to `request`.
pub(crate) fn pass_on<B>(request: &mut Request<B>) {
    if request.version() < Version::HTTP_11 {
        return;
    }
    let Some(outbox) = request.extensions().get::<Outbox>().cloned() else {
        return;
    };
    hyper::ext::on_informational(request, move |response| {
        if response.status() != StatusCode::CONTINUE {
            outbox.post(&head(response.status(), response.headers()));
        }
    });
}

fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Where the interim responses for one connection wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox(Arc<Mutex<Posted>>);

#[derive(Debug, Default)]
struct Posted {
    bytes: Vec<u8>,
    /// Of the connection.
    waker: Option<Waker>,
}

impl Outbox {
    fn post(&self, head: &[u8]) {
        let mut posted = self.lock();
        posted.bytes.extend_from_slice(head);
        if let Some(waker) = posted.waker.take() {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct InterimIo {
    socket: TcpStream,
    outbox: Outbox,
    /// How much of the outbox's first bytes was sent. While it is not 0, they have to be sent to their end.
    sent: usize,
    /// Whether hyper has bytes that it has not yet written.
    in_message: bool,
}

impl InterimIo {
    pub(crate) fn new(socket: TcpStream) -> (Self, Outbox) {
        let outbox = Outbox::default();
        let io = Self {
            socket,
            outbox: outbox.clone(),
            sent: 0,
            in_message: false,
        };
        (io, outbox)
    }

    /// Empties the outbox, and asks to be woken when something is posted.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut posted = self.outbox.lock();
        posted.waker = Some(cx.waker().clone());
        if self.in_message {
            posted.bytes.clear();
        }
        while self.sent < posted.bytes.len() {
            let rest = &posted.bytes[self.sent..];
            self.sent += ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
        }
        posted.bytes.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for InterimIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper keeps reading while the service is at work, so this is polled when something is posted
        if !self.in_message {
            // what the socket does not take now does not keep it from being read
            let _: Poll<()> = self.poll_deliver(cx)?;
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for InterimIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_deliver(cx))?;
        self.in_message = true;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written all it has
        self.in_message = false;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
