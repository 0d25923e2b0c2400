//! Services behind real sockets, and clients that speak one version of HTTP.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// Serves `app`, with HTTP/1.1 and HTTP/2, until the runtime ends.
pub async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A connection. Dropping it closes it.
pub enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    pub async fn http1(address: SocketAddr) -> Self {
        let (client, connection) = http1::handshake(TokioIo::new(connect(address).await))
            .await
            .expect("an HTTP/1.1 connection");
        tokio::spawn(connection.with_upgrades());
        Self::Http1(client)
    }

    /// With prior knowledge.
    pub async fn http2(address: SocketAddr) -> Self {
        let io = TokioIo::new(connect(address).await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .expect("an HTTP/2 connection");
        tokio::spawn(connection);
        Self::Http2(client)
    }

    /// The answer's head; its body comes as it is read.
    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        match self {
            Self::Http1(client) => {
                client.ready().await.expect("an open connection");
                client.send_request(request).await
            }
            Self::Http2(client) => {
                client.ready().await.expect("an open connection");
                client.send_request(request).await
            }
        }
        .expect("a response")
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http1(_) => "Client(HTTP/1.1)",
            Self::Http2(_) => "Client(HTTP/2)",
        })
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}
