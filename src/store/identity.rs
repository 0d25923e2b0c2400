//! Which connection a connection is.
//!
//! A pool hands out clients and does not say which. The server does, to every client that connects (`BackendKeyData`): the
//! number of its process, and a secret. `tokio-postgres` keeps both for the message that cancels a statement, and writes them
//! into it. Here such a message is written, and never sent: it is read.
//!
//! Between a client and its server there may be a pooler, which gives the session away after each transaction. Its clients
//! have numbers of its own making: so where `pg_backend_pid()` is the number that the client was told, there is none. (One is
//! known that passes on the number of some server process: pgAgroal in its transaction mode. Supavisor counts, and may come
//! across it. Therefore an answer is looked at, too.)

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Client;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Of a connection: no other one of this program has it, or had it as long as the server has been running.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    process: i32,
    secret: i32,
}

impl Identity {
    pub(super) fn of(client: &Client) -> Option<Self> {
        let mut message = Message::default();
        let token = client.cancel_token();
        let writing = token.cancel_query_raw(&mut message, Unencrypted);
        // nothing in it has to be waited for
        writing.now_or_never()?.ok()?;
        let (rest, secret) = message.0.split_last_chunk()?;
        let (_, process) = rest.split_last_chunk()?;
        Some(Self {
            process: i32::from_be_bytes(*process),
            secret: i32::from_be_bytes(*secret),
        })
    }

    /// Whether the client talks to this process of the server, and always will.
    pub(super) fn is_of_process(&self, pid: i32) -> bool {
        self.process == pid
    }
}

/// Without the secret.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.process)
    }
}

/// What is written to whoever agrees to everything: asked for encryption, the server says `S`.
#[derive(Default)]
struct Message(Vec<u8>);

impl AsyncWrite for Message {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Message {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0 {
            buffer.put_slice(b"S");
        }
        Poll::Ready(Ok(()))
    }
}

impl TlsStream for &mut Message {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// In the place of whatever encrypts the connection itself.
struct Unencrypted;

impl<'a> TlsConnect<&'a mut Message> for Unencrypted {
    type Stream = &'a mut Message;
    type Error = Infallible;
    type Future = Ready<Result<&'a mut Message, Infallible>>;

    fn connect(self, message: &'a mut Message) -> Self::Future {
        ready(Ok(message))
    }
}
